"""What `cargo bench --bench scan` asks of DuckDB: one command a line as JSON, one answer a line as JSON.

{"load": name, "columns": [[name, type]], "csv": path, "parquet": path}  makes the Parquet file, and a view on it
{"query": sql}                                                         answers the time in ms and the rows as text
"""

import json
import sys
import time

import duckdb

connection = duckdb.connect()
connection.execute("SET threads = 2")


def load(command):
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in command["columns"])
    source = f"read_csv('{command['csv']}', header = false, columns = {{{columns}}})"
    connection.execute(f"COPY (SELECT * FROM {source}) TO '{command['parquet']}' (FORMAT parquet)")
    connection.execute(f"CREATE VIEW {command['load']} AS SELECT * FROM '{command['parquet']}'")
    return {}


def query(command):
    begin = time.perf_counter()
    rows = connection.execute(command["query"]).fetchall()
    millis = (time.perf_counter() - begin) * 1e3
    return {"millis": millis, "rows": ["|".join(str(value) for value in row) for row in rows]}


for line in sys.stdin:
    command = json.loads(line)
    try:
        answer = load(command) if "load" in command else query(command)
    except Exception as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
