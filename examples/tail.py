"""A producer and a subscriber in one program, with psycopg 3 (pip install "psycopg[binary]").

Start a server with `cargo run --release -- start`, then `python3 examples/tail.py`.
"""

import os
import psycopg

SERVER = os.environ.get("SERVER", "host=127.0.0.1 port=7432 user=millstream dbname=millstream")

with psycopg.connect(SERVER, autocommit=True) as producer, psycopg.connect(SERVER) as subscriber:
    producer.execute("CREATE STREAM IF NOT EXISTS readings (sensor text KEY, celsius double precision)")

    # A cursor on the server: a FETCH waits until it is full, and takes no more.
    cursor = subscriber.cursor(name="tail")
    cursor.execute("SELECT sensor, celsius, rowoffset FROM readings WHERE celsius > 20 EMIT CHANGES")

    for i in range(10):
        producer.execute(
            "INSERT INTO readings (sensor, celsius) VALUES (%s, %s)", (f"s{i % 3}", 16.0 + i)
        )

    for sensor, celsius, offset in cursor.fetchmany(5):
        print(f"offset {offset}: {sensor} at {celsius} °C")
