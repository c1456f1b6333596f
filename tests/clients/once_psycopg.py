"""Moves events of "input" to "output" by transactions of a member, until it is killed: psycopg 3."""

import os, random, sys
import psycopg

address, driver = os.environ["SERVER"], "psycopg"
while True:
    try:
        with psycopg.connect(address, autocommit=True, connect_timeout=5) as c:
            c.execute(
                "DECLARE c CURSOR WITH HOLD FOR SELECT n FROM input"
                " EMIT CHANGES WITH (group = 'once', auto_offset_reset = 'earliest')"
            )
            while True:
                try:
                    with c.transaction():
                        rows = c.execute("FETCH 20 FROM c WITH (timeout = '100ms')").fetchall()
                        with c.cursor() as put:
                            put.executemany("INSERT INTO output VALUES (%s, %s, %s)", [(n, 2 * n, driver) for (n,) in rows])
                        if random.random() < 0.1:
                            raise psycopg.Rollback()
                except psycopg.errors.Error as error:
                    if error.sqlstate is None:
                        raise
    except psycopg.OperationalError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
