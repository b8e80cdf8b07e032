"""Pictures of stored runs, and a report of one run in one HTML file. Reads the store, draws with matplotlib.

    style     what every figure looks like, and how it becomes PNG, SVG or PDF
    series    numbers for pictures: one metric over epochs, over layers, over runs
    epochs    metrics over epochs, measured against guaranteed
    layers    depth profiles, layers by epochs, classes by classes
    sweep     last values over a key of the configuration
    report    pictures, tables, assumptions and configuration as one file

The same numbers give the same file, byte for byte.
"""
