"""The scored log: per topic-partition, a chain of Parquet segments, one row an image.

    <root>/topic=<topic>/partition=<p>/_genesis.json
    <root>/topic=<topic>/partition=<p>/<base offset, 20 digits>.parquet

`format` says how files are named and what a row holds, `footer` what a segment says of itself,
`segment` how both become a file. `chain` writes and `compact` merges; `read`, `query`, `summary`
and `verify` read. `stores` are the places where the files lie.
"""
