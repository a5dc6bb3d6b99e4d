"""The scored log: per topic-partition, a chain of Parquet segments, one row an image.

    <root>/topic=<topic>/partition=<p>/_genesis.json
    <root>/topic=<topic>/partition=<p>/<base offset, 20 digits>.parquet

`schema` says what a row holds, `footer` what a segment says of itself, `layout` how files are
named, `chain` how segments are published. `reader`, `query` and `verify` read.
"""
