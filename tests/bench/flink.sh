#!/bin/sh
# Fetches the Apache Flink that `cargo bench --bench streaming` compares with: the jars in a wheel of 330 MB from PyPI, by
# `pip`. Needs `unzip`, and Debian's packages `python3-pip` and `default-jdk-headless`. Run it once; the bench itself
# downloads nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
jars=${1:-$target/tmp/flink}
mkdir -p "$jars"
wheel=$(mktemp -d "$jars/wheel.XXXXXX")
trap 'rm -rf "$wheel"' EXIT
pip3 --quiet download --no-deps --dest "$wheel" "apache-flink-libraries==${FLINK_VERSION:-2.3.0}"
unzip -qjo "$wheel"/*.whl 'pyflink/lib/*.jar' -d "$jars"
ls "$jars"/flink-dist-*.jar
echo "Flink's jars are in $jars"
