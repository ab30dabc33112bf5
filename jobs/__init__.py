"""The service: jobs over HTTP, kept in a store, run as Ray Jobs, and the command line to all of it.

Reading order: `status` (the states and the one table of legal changes), `store` (what outlives every process),
`decide` (pure: what should happen to a job), `manager` (does it), `runner` (Ray Jobs), `api` (the routes), `serve`
and `head` (the processes), `client`, `cli/`. Never imports torch.
"""
