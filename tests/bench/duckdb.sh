#!/bin/sh
# Fetches the DuckDB that `cargo bench --bench scan` compares with, from PyPI into a virtual environment of its own.
# Needs Debian's package `python3-venv`, or any Python with `venv`. Run it once; the bench itself downloads nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
place=${1:-$target/tmp/duckdb}
python3 -m venv "$place"
"$place/bin/pip" --quiet install duckdb
"$place/bin/python" -c 'import duckdb; print("DuckDB", duckdb.__version__)'
