"""The history of the store's schema; `jobs.store` brings a database to its newest version when it opens it."""
