"""Jobs: frames answered later, by workers. The table in `server.store.jobs` is the truth."""
