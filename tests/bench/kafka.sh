#!/bin/sh
# Fetches the Apache Kafka that `cargo bench --bench ingest` compares with: about 130 MB from Maven Central, by `mvn`.
# Needs Debian's packages `maven` and `default-jdk-headless`. Run it once; the bench itself downloads nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
jars=${1:-$target/tmp/kafka}
mkdir -p "$jars"
jars=$(cd "$jars" && pwd)
mvn --batch-mode --quiet -f "$here/kafka/pom.xml" "-Dkafka.version=${KAFKA_VERSION:-4.1.0}" \
    org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies "-DoutputDirectory=$jars"
ls "$jars"/kafka_2.13-*.jar
echo "Kafka's jars are in $jars"
