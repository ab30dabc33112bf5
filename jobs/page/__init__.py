"""The web page: shells without data, and the scripts that fill them from `/api/v1`."""
