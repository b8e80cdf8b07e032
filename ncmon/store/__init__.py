"""The store: one SQLite file, written by one daemon and read by everybody. The only SQL of ncmon.

    schema      tables, views, migrations; columns made from the registry
    connection  opening for reading, and telling what is wrong with a file
    migrate     opening for writing, bringing older files up to date
    arrays      (C,) and (C, C) arrays as BLOBs
    alerts      what rules raised
    writer      one transaction a batch
    results     what reading returns
    runs        one stored run
    queries     the whole store
    screens     what screens ask beyond histories
    arrivals    windows in the order in which they came

It knows neither who writes nor who looks.
"""
