"""Stored runs as files that other tools read. Reads the store, writes files, knows no command line.

    rows        long rows of a run, block by block: what every table is made of
    text        CSV and JSON lines
    parquet     one file, or a directory partitioned by run for DuckDB, Spark and Polars
    npz         numpy arrays of everything, class and pair arrays among them
    tensorboard event files, whole or as they come
    bridge      what of a run another tracker does not have yet
    wandb       Weights & Biases behind that bridge

Numbers come out bit for bit, except in event files, whose scalars are single precision. A file is written beside its
name and takes it when it is complete: whoever reads sees the old one or the new one.
"""
