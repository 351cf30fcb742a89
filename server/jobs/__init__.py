"""Jobs: frames answered later, by workers. The table in `server.store.jobs.table` is the truth."""
