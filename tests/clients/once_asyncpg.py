"""Moves events of "input" to "output" by transactions of a member, until it is killed: asyncpg."""

import asyncio, os, random, sys
import asyncpg


class Undo(Exception):
    pass


async def main():
    host, port = os.environ["SERVER_HOST"], int(os.environ["SERVER_PORT"])
    c = await asyncpg.connect(host=host, port=port, user="tester", database="millstream", timeout=10)
    # As a pool does with each connection that it takes back.
    await c.reset()
    await c.execute(
        "DECLARE c CURSOR WITH HOLD FOR SELECT n FROM input"
        " EMIT CHANGES WITH (group = 'once', auto_offset_reset = 'earliest')"
    )
    while True:
        try:
            async with c.transaction():
                rows = await c.fetch("FETCH 20 FROM c WITH (timeout = '100ms')")
                await c.executemany("INSERT INTO output VALUES ($1, $2, 'asyncpg')", [(r["n"], 2 * r["n"]) for r in rows])
                if random.random() < 0.1:
                    raise Undo()
        except Undo:
            pass
        except asyncpg.PostgresConnectionError:
            raise
        except asyncpg.PostgresError:
            pass


try:
    asyncio.run(main())
except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
    print(error, file=sys.stderr)
    sys.exit(3)
