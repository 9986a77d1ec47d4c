"""From documents to token shards: `python -m data_prep SOURCE --output DIR`."""
