//! Whether a pipeline can go on with the state of another: for `CREATE OR REPLACE … AS SELECT`.
//!
//! Operators with state are matched in order; each must be the same one, of the same columns. What stands between them may
//! differ where that cannot contradict the state: before an operator whose rows only ever come, and behind the last one. Where rows also go,
//! an operator would be told that one goes which it never saw come. Leaves out sources and columns of the sink (engine).

use super::operator::{Origins, in_origins};
use super::pipeline::{Edge, Node, Pipeline};
use super::save::StateReader;
use crate::error::SqlError;
use millstream_catalog::model::SqlState;

/// An operator with state, as far as its state depends on it.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    /// Its name.
    name: String,
    /// What it does, in parts.
    parts: Vec<String>,
    /// What comes to it.
    inputs: Vec<String>,
}

/// What the parts of operators are, for people.
const PARTS: [(&str, &[&str]); 7] = [
    ("aggregate", &["grouping", "aggregates", "window", "types", "way rows come and go"]),
    ("sessions", &["grouping", "event time and aggregates", "gap and grace", "aggregates", "types"]),
    ("join", &["kind of join", "left side", "right side", "condition", "WITHIN", "columns"]),
    ("lookup", &["kind of join", "columns joined by", "condition", "columns"]),
    ("normalize", &["key", "columns read of a table"]),
    ("deduplicate", &["partition and order", "numbering", "types"]),
    ("top", &["order", "number of rows", "numbering", "way rows come and go"]),
];

/// `text` without the positions of columns behind their names.
fn by_name(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '@' && rest.peek().is_some_and(char::is_ascii_digit) {
            while rest.next_if(char::is_ascii_digit).is_some() {}
        } else {
            out.push(c);
        }
    }
    out
}

/// The name of an operator, and its parts, of its text.
fn name_and_parts(text: &str) -> (&str, &str) {
    let (name, inside) = text.split_once('(').unwrap_or((text, ""));
    (name, inside.strip_suffix(')').unwrap_or(inside))
}

impl Pipeline {
    /// Checks that this pipeline can go on with what `old` saved.
    ///
    /// # Errors
    /// What differs, in words.
    pub fn check_follows(&self, old: &Self) -> Result<(), String> {
        let (before, after) = (old.held(), self.held());
        let names = |held: &[Held]| match held.is_empty() {
            true => "nothing".to_owned(),
            false => held.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", "),
        };
        if names(&before) != names(&after) {
            let (before, after) = (names(&before), names(&after));
            return Err(format!("the operators that keep state are {before}, and would be {after}"));
        }
        for (number, (before, after)) in before.iter().zip(&after).enumerate() {
            difference(before, after).map_err(|what| format!("{what} of operator {} ({})", number + 1, before.name))?;
        }
        let filters = |pipeline: &Self| match pipeline.parts.sink.merges() {
            true => pipeline.filters(&pipeline.parts.root),
            false => Vec::new(),
        };
        match filters(self) == filters(old) {
            true => Ok(()),
            false => Err("the condition on rows that come and go would be another".to_owned()),
        }
    }

    /// Takes over the state of a pipeline that this one follows. The pipeline is as new before.
    ///
    /// # Errors
    /// `SE006` when it is the state of other operators, `XX001` when it is damaged.
    pub fn take_over(&mut self, bytes: &[u8]) -> Result<(), SqlError> {
        let mut state = StateReader::open(bytes, self.store.as_ref())?;
        let numbers = state.numbers();
        self.parts.time.restore(&mut state)?;
        let holding: Vec<&mut Node> = self.parts.nodes.iter_mut().filter(|node| node.operator.is_stateful()).collect();
        if numbers.len() != holding.len() {
            let fact = "saved state is of other operators";
            return Err(SqlError::new(SqlState::CheckpointIncompatible, fact));
        }
        for (number, node) in numbers.into_iter().zip(holding) {
            state.take_within(&format!("{number}."), |state| node.operator.restore(state))?;
        }
        state.finish()
    }

    /// The operators with state, in order.
    fn held(&self) -> Vec<Held> {
        let held = self.parts.nodes.iter().filter(|node| node.operator.is_stateful());
        held.map(|node| self.described(node)).collect()
    }

    fn described(&self, node: &Node) -> Held {
        // Where it is not known what a column is, its position says so: two may have one name.
        let own = node.operator.fingerprint();
        let text = match node.inputs.as_slice() {
            [input] => self.origins(input).map_or(own.clone(), |origins| by_name(&in_origins(&own, &origins))),
            _ => own,
        };
        let (name, inside) = name_and_parts(&text);
        let mut parts: Vec<String> = inside.split("; ").map(str::to_owned).collect();
        // Which keys are shown depends on the key alone, and no old form of a row comes.
        let is_keyed = name == "keyed";
        if is_keyed {
            parts.truncate(1);
        }
        let origins: Vec<Option<Vec<Origins>>> = node.inputs.iter().map(|edge| self.origins(edge)).collect();
        let is_free =
            |(edge, origins): &(&Edge, &Option<Vec<Origins>>)| is_keyed || (self.is_append(edge) && origins.is_some());
        let input = |pair: (&Edge, &Option<Vec<Origins>>)| match (is_free(&pair), pair.1) {
            (false, _) => self.text(pair.0),
            (true, Some(origins)) if node.inputs.len() > 1 => {
                let columns: Vec<&str> = origins.iter().map(|(_, origin)| origin.as_str()).collect();
                format!("{} of {}", columns.join(", "), self.leaves(pair.0).join(", "))
            }
            (true, _) => self.leaves(pair.0).join(", "),
        };
        let inputs = node.inputs.iter().zip(&origins).map(input).collect();
        Held { name: name.to_owned(), parts, inputs }
    }

    /// The columns along `edge` in terms of sources and operators with state.
    fn origins(&self, edge: &Edge) -> Option<Vec<Origins>> {
        match edge {
            Edge::Source { schema, .. } => {
                let name = |field: &arrow::datatypes::FieldRef| (field.name().clone(), field.name().clone());
                Some(schema.fields().iter().map(name).collect())
            }
            Edge::Node(at) => {
                let node = self.parts.nodes.get(*at).filter(|node| !node.operator.is_stateful())?;
                let [input] = node.inputs.as_slice() else { return None };
                node.operator.origins(&self.origins(input)?)
            }
        }
    }

    /// Whether rows along `edge` are events of streams, that nothing with state has changed.
    fn is_append(&self, edge: &Edge) -> bool {
        match edge {
            Edge::Source { source, .. } => {
                self.parts.sources.get(*source).is_some_and(|source| source.rowtombstone.is_none())
            }
            Edge::Node(at) => self.parts.nodes.get(*at).is_some_and(|node| {
                !node.operator.is_stateful() && node.inputs.iter().all(|input| self.is_append(input))
            }),
        }
    }

    /// How many operators with state stand before the one at `at`.
    fn rank(&self, at: usize) -> usize {
        self.parts.nodes.iter().take(at).filter(|node| node.operator.is_stateful()).count()
    }

    /// The sources and operators with state that `edge` comes from.
    fn leaves(&self, edge: &Edge) -> Vec<String> {
        match edge {
            Edge::Source { source, .. } => vec![format!("source {source}")],
            Edge::Node(at) => match self.parts.nodes.get(*at) {
                Some(node) if !node.operator.is_stateful() => {
                    node.inputs.iter().flat_map(|input| self.leaves(input)).collect()
                }
                _ => vec![format!("operator {}", self.rank(*at) + 1)],
            },
        }
    }

    /// All of what stands between `edge` and the sources and operators with state that it comes from.
    fn text(&self, edge: &Edge) -> String {
        match edge {
            Edge::Source { source, schema, .. } => {
                let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                format!("source {source} {}", columns.join(", "))
            }
            Edge::Node(at) => match self.parts.nodes.get(*at) {
                Some(node) if !node.operator.is_stateful() => {
                    let inputs: Vec<String> = node.inputs.iter().map(|input| self.text(input)).collect();
                    format!("{} of {}", node.operator.fingerprint(), inputs.join(", "))
                }
                _ => format!("operator {}", self.rank(*at) + 1),
            },
        }
    }

    /// The filters between `edge` and the operators with state that it comes from.
    fn filters(&self, edge: &Edge) -> Vec<String> {
        let Edge::Node(at) = edge else { return Vec::new() };
        let Some(node) = self.parts.nodes.get(*at).filter(|node| !node.operator.is_stateful()) else {
            return Vec::new();
        };
        let text = node.operator.fingerprint();
        let own = name_and_parts(&text).1.split("; ").filter(|stage| stage.starts_with("filter ")).map(str::to_owned);
        own.chain(node.inputs.iter().flat_map(|input| self.filters(input))).collect()
    }
}

/// The first difference, in words.
fn difference(before: &Held, after: &Held) -> Result<(), String> {
    let words = PARTS.iter().find(|(name, _)| *name == before.name).map_or(&[][..], |(_, words)| *words);
    let word = |at: usize| words.get(at).copied().unwrap_or("definition");
    if before.parts.len() != after.parts.len() {
        return Err(format!(
            "\"{}\" would be \"{}\" in the definition",
            before.parts.join("; "),
            after.parts.join("; ")
        ));
    }
    let mut pairs = before.parts.iter().zip(&after.parts).enumerate();
    if let Some((at, (before, after))) = pairs.find(|(_, (before, after))| before != after) {
        return Err(format!("\"{before}\" would be \"{after}\" in the {}", word(at)));
    }
    match before.inputs == after.inputs {
        true => Ok(()),
        false => Err(format!("\"{}\" would be \"{}\" in the input", before.inputs.join("; "), after.inputs.join("; "))),
    }
}
