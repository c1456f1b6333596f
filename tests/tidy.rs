//! The rules of the code that a machine can check: layers, where crates may be named, lengths, words.

use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Lines of a file, tests left out.
const FILE_LINES_MAX: usize = 800;
/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

struct Source {
    /// Relative to the root.
    path: String,
    text: String,
}

impl Source {
    /// The text before the file's tests.
    fn product(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod ").next().unwrap_or_default()
    }

    /// Lines without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.product()
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(i, l)| (i + 1, l))
    }
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn sources(dirs: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for dir in dirs {
        walk(&Path::new(ROOT).join(dir), &mut paths);
    }
    paths.sort();
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let load = |path: PathBuf| Source {
        text: std::fs::read_to_string(&path).unwrap(),
        path: path.strip_prefix(ROOT).unwrap().to_string_lossy().into_owned(),
    };
    paths.into_iter().filter(is_rust).map(load).collect()
}

/// Everything but files that hold only tests.
fn product() -> Vec<Source> {
    let is_test = |path: &str| path.contains("/tests/") || path.ends_with("/tests.rs");
    sources(&["src", "sql/src", "catalog/src"]).into_iter().filter(|source| !is_test(&source.path)).collect()
}

#[track_caller]
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// The layer a file belongs to: a folder of `src`, or a crate.
fn layer(path: &str) -> &str {
    let mut parts = path.split('/');
    match parts.next() {
        Some("src") => match parts.next() {
            Some(file) if file.ends_with(".rs") => "top",
            Some(folder) => folder,
            None => "top",
        },
        Some(krate) => krate,
        None => "top",
    }
}

#[test]
fn layers_import_only_what_they_may() {
    // For each layer, what it must not name.
    let banned: &[(&str, &[&str])] = &[
        ("catalog", &["millstream_sql", "crate::storage", "tokio"]),
        ("sql", &["tokio", "std::fs", "std::net", "std::time::SystemTime", "std::time::Instant"]),
        (
            "storage",
            &[
                "crate::replication",
                "crate::engine",
                "crate::server",
                "crate::shell",
                "millstream_sql",
                "millstream_catalog::apply",
                "millstream_catalog::Relation",
            ],
        ),
        ("replication", &["crate::engine", "crate::server", "crate::shell", "millstream_sql"]),
        ("offline", &["crate::engine", "crate::server", "crate::shell", "crate::node", "openraft"]),
        ("engine", &["crate::server", "crate::shell", "crate::node", "pgwire"]),
        ("server", &["crate::storage", "crate::replication", "crate::shell", "millstream_sql", "crate::node"]),
        ("shell", &["crate::engine", "crate::storage", "crate::replication", "crate::server", "millstream_sql"]),
    ];
    let mut found = Vec::new();
    for source in product() {
        // The demo starts a node of its own; it still talks to it as a client.
        let words = banned.iter().find(|(name, _)| *name == layer(&source.path)).map_or(&[][..], |(_, words)| words);
        for (line, code) in source.code() {
            for word in words.iter().filter(|word| names(code, word)) {
                found.push(format!("{}:{line}: {word}", source.path));
            }
        }
    }
    none("an import against the layers", found);
}

/// Whether `code` names the path `word`, not merely a longer word that begins with it.
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word)
    })
}

#[test]
fn crates_are_named_only_in_their_place() {
    let places: &[(&str, &[&str])] = &[
        ("openraft", &["src/replication/"]),
        ("datafusion", &["sql/src/", "src/engine/"]),
        ("sqlparser", &["sql/src/", "src/engine/"]),
        ("pgwire", &["src/server/pg/", "src/shell/"]),
        ("memmap2", &["src/storage/mmap.rs"]),
        ("rustyline", &["src/shell/"]),
        ("axum", &["src/server/admin/"]),
        ("anyhow", &["src/main.rs", "src/shell/demo"]),
        ("std::fs", &["src/storage/disk.rs", "src/storage/mmap.rs", "src/env.rs"]),
    ];
    let mut found = Vec::new();
    for source in product() {
        for (line, code) in source.code() {
            for (word, _) in places.iter().filter(|(_, places)| !places.iter().any(|p| source.path.starts_with(p))) {
                if names(code, word) && !code.contains('"') {
                    found.push(format!("{}:{line}: {word}", source.path));
                }
            }
        }
    }
    none("a crate named outside its place", found);
}

/// Maps of files, and one question to the kernel.
const UNSAFE: [&str; 2] = ["src/storage/mmap.rs", "src/server/pg/tcp_info.rs"];

#[test]
fn unsafe_stands_in_two_files_and_proves_itself() {
    let mut found = Vec::new();
    for source in product() {
        let is_allowed = UNSAFE.contains(&source.path.as_str());
        for (line, code) in source.code() {
            if names(code, "unsafe") && !is_allowed {
                found.push(format!("{}:{line}", source.path));
            }
        }
        if is_allowed && !source.text.contains("// Safety:") {
            found.push(format!("{} has no proof", source.path));
        }
    }
    none("unsafe", found);
}

#[test]
fn files_and_functions_are_short() {
    let mut found = Vec::new();
    for source in product() {
        let lines = source.product().lines().count();
        if lines > FILE_LINES_MAX {
            found.push(format!("{}: {lines} lines", source.path));
        }
        found.extend(long_functions(&source));
    }
    none("too long", found);
}

/// Functions by indentation: rustfmt puts the closing brace under the `fn`.
fn long_functions(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let lines: Vec<&str> = source.product().lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let starts = [
            "fn ",
            "pub fn ",
            "pub(crate) fn ",
            "pub(super) fn ",
            "async fn ",
            "pub async fn ",
            "pub(crate) async fn ",
            "pub(super) async fn ",
            "const fn ",
            "pub const fn ",
        ];
        if !starts.iter().any(|start| line.trim_start().starts_with(start)) {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        let end = lines[at..]
            .iter()
            .position(|l| **l == close || (l.ends_with(';') && l.len() - l.trim_start().len() == indent));
        if let Some(length) = end.filter(|length| *length >= FUNCTION_LINES_MAX) {
            found.push(format!("{}:{}: function of {} lines", source.path, at + 1, length + 1));
        }
    }
    found
}

#[test]
fn every_file_says_what_it_owns() {
    let found = product().into_iter().filter(|s| !s.text.starts_with("//!")).map(|s| s.path).collect();
    none("no //! at the top", found);
}

#[test]
fn names_say_something() {
    let banned_files = ["util", "utils", "common", "helper", "helpers", "manager", "misc"];
    let banned_types = ["Manager", "Helper", "Util", "Utils"];
    let mut found = Vec::new();
    for source in product() {
        for part in source.path.trim_end_matches(".rs").split('/').filter(|part| banned_files.contains(part)) {
            found.push(format!("{}: {part}", source.path));
        }
        for (line, code) in source.code() {
            let code = code.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            let name = ["struct ", "enum ", "trait "].iter().find_map(|word| code.strip_prefix(word));
            if let Some(name) = name {
                let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
                if banned_types.iter().any(|word| name.ends_with(word)) {
                    found.push(format!("{}:{line}: {name}", source.path));
                }
            }
        }
    }
    none("names without meaning", found);
}

#[test]
fn queues_are_bounded_and_nothing_is_left_undone() {
    let words = ["unbounded_channel", "todo!", "unimplemented!", "dbg!", "static mut"];
    let mut found = Vec::new();
    for source in product() {
        for (line, code) in source.code() {
            for word in words.iter().filter(|word| code.contains(**word)) {
                found.push(format!("{}:{line}: {word}", source.path));
            }
        }
    }
    none("banned", found);
}

#[test]
fn tests_do_not_sleep_or_hide() {
    let mut found = Vec::new();
    let words = [concat!("thread::", "sleep"), concat!("time::", "sleep("), concat!("#[", "ignore")];
    for source in sources(&["src", "sql/src", "catalog/src", "tests"]) {
        let tests = if source.path.starts_with("tests/") && !source.path.starts_with("tests/bench") {
            source.text.as_str()
        } else {
            &source.text[source.product().len()..]
        };
        for (line, code) in tests.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for word in words.iter().filter(|word| code.contains(**word)) {
                found.push(format!("{}:{}: {word}", source.path, line + 1));
            }
        }
    }
    none("a test that sleeps or is not run", found);
}

#[test]
fn the_top_level_is_as_agreed() {
    let agreed = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "src",
        "sql",
        "catalog",
        "tests",
        "examples",
        "clippy.toml",
        "rustfmt.toml",
        "target",
    ];
    let found = std::fs::read_dir(ROOT)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !name.starts_with("LICENSE") && !name.starts_with("millstream-data"))
        .filter(|name| !agreed.contains(&name.as_str()))
        .collect();
    none("not agreed at the top level", found);
}
