//! Session settings: names, defaults, what values are accepted, and which are reported to the client.
//!
//! A value without an effect is refused rather than remembered. Leaves out where settings are read: the
//! session passes typed values to planning and execution. A crash forgets them, as a lost connection does.

use crate::engine::group::Reset;
use millstream_catalog::model::{Durability, ProducerId, ProducerIdError, Span, SqlState};
use millstream_sql::SqlError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The version drivers parse: PostgreSQL's number first.
pub const SERVER_VERSION: &str = concat!("15.0 (Millstream ", env!("CARGO_PKG_VERSION"), ")");

/// What a setting accepts.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Any text.
    Text,
    /// One of these words, in any case; the first spelling that matches is stored.
    Word(&'static [&'static str]),
    /// A time in milliseconds, or with a unit; 0 switches it off.
    Time,
    /// A whole number within bounds.
    Number(i64, i64),
    /// `on` or `off`, in PostgreSQL's words for them.
    Switch,
    /// Names separated by commas.
    Names,
    /// A producer's name, or nothing.
    Producer,
    /// Cannot be set.
    Fixed,
}

struct Definition {
    name: &'static str,
    default: &'static str,
    kind: Kind,
    is_reported: bool,
    description: &'static str,
}

const fn define(
    name: &'static str,
    default: &'static str,
    kind: Kind,
    is_reported: bool,
    description: &'static str,
) -> Definition {
    Definition { name, default, kind, is_reported, description }
}

/// Longer application names are cut, as PostgreSQL does.
const NAME_BYTES_MAX: usize = 63;
/// Savepoints keep values, each those of its time.
const VALUE_BYTES_MAX: usize = 1_000;

const RESETS: &[&str] = &["latest", "earliest", "none"];
const UTC: &[&str] = &["UTC", "Etc/UTC", "GMT", "Z", "0", "+00", "+00:00"];
const READ_COMMITTED: &[&str] = &["read committed", "read uncommitted"];

/// Every setting, by name in lower case.
const SETTINGS: &[Definition] = &[
    define("application_name", "", Kind::Text, true, "name of the client program"),
    define("auto_offset_reset", "latest", Kind::Word(RESETS), false, "where a push query begins"),
    define("bytea_output", "hex", Kind::Word(&["hex"]), false, "output format of bytea"),
    define("client_encoding", "UTF8", Kind::Word(&["UTF8", "UTF-8", "unicode"]), true, "encoding of the client"),
    define(
        "client_min_messages",
        "notice",
        Kind::Word(&["notice", "warning", "error", "debug1", "debug2", "debug3", "debug4", "debug5", "log"]),
        false,
        "least severity of messages sent to the client",
    ),
    define(
        "datestyle",
        "ISO, MDY",
        Kind::Word(&["ISO, MDY", "ISO", "ISO,MDY", "ISO, US", "MDY"]),
        true,
        "format of dates",
    ),
    define("default_transaction_isolation", "read committed", Kind::Word(READ_COMMITTED), false, "isolation"),
    define("default_transaction_read_only", "off", Kind::Word(&["off", "false", "0", "no"]), true, "always off"),
    define("durability", "topic", Kind::Word(&["topic", "sync", "async"]), false, "when a write is acknowledged"),
    define("extra_float_digits", "1", Kind::Number(1, 3), false, "floats are printed so that they read back exactly"),
    define("fetch_timeout", "0", Kind::Time, false, "how long a FETCH waits for rows; 0 waits until it is full"),
    define(
        "group_instance_id",
        "",
        Kind::Text,
        false,
        "name under which a member of a consumer group comes back to its partitions",
    ),
    define(
        "implicit_flush",
        "off",
        Kind::Switch,
        false,
        "whether a write waits until continuous queries have taken it in",
    ),
    define("in_hot_standby", "off", Kind::Fixed, true, "always off"),
    define("integer_datetimes", "on", Kind::Fixed, true, "always on"),
    define("intervalstyle", "postgres", Kind::Word(&["postgres"]), true, "format of intervals"),
    define("is_superuser", "on", Kind::Fixed, true, "whether the user may do everything"),
    define("lock_timeout", "0", Kind::Time, false, "longest wait for rows that others change; 0 is no limit"),
    define("max_identifier_length", "63", Kind::Fixed, false, "bytes of a name"),
    define(
        "max_poll_interval",
        "5min",
        Kind::Time,
        false,
        "longest time a member of a consumer group may take before it asks for more rows; 0 is no limit",
    ),
    define("producer_id", "", Kind::Producer, false, "name under which rows are numbered, to be written once"),
    define("search_path", "\"$user\", public", Kind::Names, false, "schemas searched for unqualified names"),
    define("server_encoding", "UTF8", Kind::Fixed, true, "encoding of stored text"),
    define("server_version", SERVER_VERSION, Kind::Fixed, true, "version"),
    define("server_version_num", "150000", Kind::Fixed, false, "version as a number"),
    define("session_authorization", "", Kind::Fixed, true, "user of the session"),
    define("session_timeout", "45s", Kind::Time, false, "after how long a silent client counts as gone"),
    define("standard_conforming_strings", "on", Kind::Word(&["on", "true", "1", "yes"]), true, "always on"),
    define("statement_timeout", "0", Kind::Time, false, "longest time of a statement; 0 is no limit"),
    define("timezone", "UTC", Kind::Word(UTC), true, "time zone of output; always UTC"),
    define("transaction_isolation", "read committed", Kind::Word(READ_COMMITTED), false, "isolation"),
    define("transaction_read_only", "off", Kind::Word(&["off", "false", "0", "no"]), false, "always off"),
];

/// Settings of the contract that nothing reads yet, and what to do instead.
const LATER: &[(&str, &str)] = &[
    ("emit", "leave it out: changes of one key within a step are merged"),
    ("group", "write EMIT CHANGES WITH (group = 'name')"),
    ("auto_commit", "write EMIT CHANGES WITH (group = 'name', auto_commit = false)"),
    ("auto_commit_interval", "write EMIT CHANGES WITH (group = 'name', auto_commit_interval = '5s')"),
    ("on_error", "leave it out: a query stops at an event that fails"),
    ("idle_timeout", "leave it out: it is 10 seconds"),
];

/// A setting as `SHOW ALL` and `millstream.settings` list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SettingRow {
    /// Its name.
    pub name: &'static str,
    /// Its value in this session.
    pub value: String,
    /// What it does.
    pub description: &'static str,
}

/// Settings that were given a value. Copies share them until one changes.
type Values = Arc<BTreeMap<&'static str, String>>;

/// What a transaction that changed settings goes back to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    /// When it is rolled back: as they were before.
    before: Values,
    /// When it commits: without those of `SET LOCAL`.
    after: Values,
}

/// The settings as they were when a savepoint was set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Saved {
    name: String,
    changed: Values,
    block: Option<Block>,
}

/// The settings of one session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    changed: Values,
    /// What they were when the session began: RESET goes back to these.
    begun: Values,
    /// Of a transaction that has changed some.
    block: Option<Block>,
    /// What the two were when savepoints were set.
    saved: Vec<Saved>,
}

fn find(name: &str) -> Result<&'static Definition, SqlError> {
    let folded = name.to_ascii_lowercase().replace('.', "_");
    SETTINGS.iter().find(|definition| definition.name == folded).ok_or_else(|| {
        if let Some((name, hint)) = LATER.iter().find(|(later, _)| *later == folded) {
            return SqlError::unsupported(format!("the setting {name}"), *hint);
        }
        SqlError::new(SqlState::UndefinedObject, format!("unrecognized configuration parameter \"{name}\""))
            .hint("SHOW ALL lists the settings")
    })
}

/// Parses `'1s'`, `'500ms'`, `'2 min'`, or a bare number of milliseconds.
fn parse_time(text: &str) -> Option<Span> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: f64 = digits.parse().ok()?;
    let micros_per_unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "ms" | "millisecond" | "milliseconds" => 1e3,
        "us" => 1.0,
        "s" | "sec" | "second" | "seconds" => 1e6,
        "min" | "minute" | "minutes" => 60e6,
        "h" | "hour" | "hours" => 3_600e6,
        "d" | "day" | "days" => 86_400e6,
        _ => return None,
    };
    let micros = number * micros_per_unit;
    (micros <= 2_147_483_647_000.0).then(|| Span::from_micros(micros as i64))
}

/// Whether `SET` may give a setting so many values.
///
/// # Errors
/// 42704 for an unknown name, 22023 for more than one value of a setting that has one.
pub(crate) fn check_count(name: &str, count: usize) -> Result<(), SqlError> {
    let is_list = matches!(find(name)?.name, "datestyle" | "search_path");
    match is_list || count <= 1 {
        true => Ok(()),
        false => {
            let message = format!("SET {name} takes only one argument");
            Err(SqlError::new(SqlState::InvalidParameterValue, message))
        }
    }
}

/// A time as PostgreSQL shows it: in the largest unit that it is a whole number of.
fn written_time(span: Span) -> String {
    const UNITS: [(i64, &str); 6] =
        [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1_000, "ms"), (1, "us")];
    match UNITS.iter().find(|(micros, _)| span.micros() != 0 && span.micros() % micros == 0) {
        Some((micros, unit)) => format!("{}{unit}", span.micros() / micros),
        None => "0".to_owned(),
    }
}

/// The schemas there are.
const SCHEMAS: [&str; 4] = ["public", "millstream", "pg_catalog", "information_schema"];

/// The names of a list such as `"$user", public`: folded unless quoted. `None` when it is no such list.
fn names(text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Some(names);
    }
    loop {
        let mut name = String::new();
        match rest.strip_prefix('"') {
            None if rest.is_empty() || rest.starts_with(',') => return None,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                name.push_str(&rest[..end].trim_end().to_lowercase());
                rest = &rest[end..];
                if name.contains(['"', ' ']) {
                    return None;
                }
            }
            Some(mut quoted) => loop {
                let end = quoted.find('"')?;
                name.push_str(&quoted[..end]);
                quoted = &quoted[end + 1..];
                match quoted.strip_prefix('"') {
                    Some(more) => {
                        name.push('"');
                        quoted = more;
                    }
                    None => {
                        rest = quoted.trim_start();
                        break;
                    }
                }
            },
        }
        names.push(name);
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None => return rest.is_empty().then_some(names),
        }
    }
}

/// `name` as a list of names has it.
pub(crate) fn quote_name(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

impl Definition {
    fn check(&self, value: &str) -> Result<String, SqlError> {
        let invalid = || {
            SqlError::new(
                SqlState::InvalidParameterValue,
                format!("invalid value for parameter \"{}\": \"{value}\"", self.name),
            )
        };
        if self.name == "application_name" {
            return Ok(value[..value.floor_char_boundary(NAME_BYTES_MAX)].to_owned());
        }
        if value.len() > VALUE_BYTES_MAX {
            let message = format!("invalid value for parameter \"{}\"", self.name);
            return Err(SqlError::new(SqlState::InvalidParameterValue, message)
                .detail(format!("it has {} bytes", value.len()))
                .hint(format!("at most {VALUE_BYTES_MAX} bytes are accepted")));
        }
        match self.kind {
            Kind::Text => Ok(value.to_owned()),
            Kind::Producer => match value.is_empty() || ProducerId::new(value).is_ok() {
                true => Ok(value.to_owned()),
                false => Err(invalid().hint(ProducerIdError.to_string())),
            },
            Kind::Switch => match value.to_ascii_lowercase().as_str() {
                "on" | "true" | "yes" | "1" => Ok("on".to_owned()),
                "off" | "false" | "no" | "0" => Ok("off".to_owned()),
                _ => Err(invalid().hint("accepted: on; off")),
            },
            Kind::Names => names(value).map(|_| value.to_owned()).ok_or_else(|| invalid().hint("write name, name")),
            Kind::Word(words) => {
                let wanted = value.replace(' ', "").to_ascii_lowercase();
                if words.iter().any(|word| word.replace(' ', "").to_ascii_lowercase() == wanted) {
                    let has_synonyms = !matches!(self.name, "client_min_messages" | "auto_offset_reset" | "durability");
                    return Ok(if has_synonyms { words[0].to_owned() } else { value.to_ascii_lowercase() });
                }
                Err(invalid().hint(format!("accepted: {}", words.join("; "))))
            }
            Kind::Time => parse_time(value).map(written_time).ok_or_else(|| {
                invalid().hint("valid units are \"us\", \"ms\", \"s\", \"min\", \"h\" and \"d\", for at most 24 days")
            }),
            Kind::Number(least, last) => match value.trim().parse::<i64>() {
                Ok(number) if (least..=last).contains(&number) => Ok(number.to_string()),
                Ok(_) => Err(invalid().hint(format!("accepted: {least} to {last}"))),
                Err(_) => Err(invalid()),
            },
            Kind::Fixed => {
                Err(SqlError::new(SqlState::ObjectInUse, format!("parameter \"{}\" cannot be changed", self.name)))
            }
        }
    }
}

impl Settings {
    /// The value of `name`.
    ///
    /// # Errors
    /// 42704 when there is no such setting.
    pub(crate) fn show(&self, name: &str) -> Result<String, SqlError> {
        let definition = find(name)?;
        Ok(self.value(definition))
    }

    fn value(&self, definition: &Definition) -> String {
        self.changed.get(definition.name).map_or_else(|| definition.default.to_owned(), Clone::clone)
    }

    /// The value of a setting of this table, by its name there.
    fn get(&self, name: &'static str) -> &str {
        let default = || SETTINGS.iter().find(|definition| definition.name == name).map_or("", |it| it.default);
        self.changed.get(name).map_or_else(default, String::as_str)
    }

    /// Sets `name`; returns the value to report when the client wants to know of it.
    ///
    /// # Errors
    /// 42704 for an unknown name, 22023 for a value that would have no effect, 55006 for a fixed one.
    pub(crate) fn set(
        &mut self,
        name: &str,
        value: &str,
        scope: SetScope,
    ) -> Result<Option<(String, String)>, SqlError> {
        let definition = find(name)?;
        let value = definition.check(value)?;
        self.change(scope, |values| drop(Arc::make_mut(values).insert(definition.name, value.clone())));
        Ok(definition.is_reported.then(|| (reported_name(definition.name), value)))
    }

    fn change(&mut self, scope: SetScope, change: impl Fn(&mut Values)) {
        if scope != SetScope::Session {
            let new = || Block { before: self.changed.clone(), after: self.changed.clone() };
            let block = self.block.get_or_insert_with(new);
            if scope == SetScope::InTransaction {
                change(&mut block.after);
            }
        }
        change(&mut self.changed);
    }

    /// Sets a value without checks: for what the server itself decides (`session_authorization`).
    pub(crate) fn force(&mut self, name: &str, value: &str) {
        if let Ok(definition) = find(name) {
            Arc::make_mut(&mut self.changed).insert(definition.name, value.to_owned());
        }
    }

    /// The session begins, with the settings as they are.
    pub(crate) fn begin(&mut self) {
        self.begun = Arc::clone(&self.changed);
    }

    /// Back to what it was when the session began.
    ///
    /// # Errors
    /// 42704 for an unknown name.
    pub(crate) fn reset(&mut self, name: &str, scope: SetScope) -> Result<Option<(String, String)>, SqlError> {
        let definition = find(name)?;
        if !matches!(definition.kind, Kind::Fixed) {
            let begun = self.begun.get(definition.name).cloned();
            self.change(scope, |values| {
                let values = Arc::make_mut(values);
                match &begun {
                    Some(value) => drop(values.insert(definition.name, value.clone())),
                    None => drop(values.remove(definition.name)),
                }
            });
        }
        Ok(definition.is_reported.then(|| (reported_name(definition.name), self.value(definition))))
    }

    /// Everything, back to what it was when the session began. What the client is to be told of that.
    pub(crate) fn reset_all(&mut self, scope: SetScope) -> Vec<(String, String)> {
        let (told, begun) = (self.reported(), Arc::clone(&self.begun));
        self.change(scope, |values| values.clone_from(&begun));
        self.reported().into_iter().filter(|setting| !told.contains(setting)).collect()
    }

    /// `SAVEPOINT name`
    pub(crate) fn save(&mut self, name: &str) {
        self.saved.push(Saved { name: name.to_owned(), changed: self.changed.clone(), block: self.block.clone() });
    }

    /// `RELEASE name`: those set later go with it.
    pub(crate) fn release(&mut self, name: &str) {
        let at = self.saved.iter().rposition(|saved| saved.name == name);
        self.saved.truncate(at.unwrap_or(self.saved.len()));
    }

    /// `ROLLBACK TO name`. What the client is to be told of that.
    pub(crate) fn roll_back_to(&mut self, name: &str) -> Vec<(String, String)> {
        let Some(at) = self.saved.iter().rposition(|saved| saved.name == name) else { return Vec::new() };
        self.saved.truncate(at + 1);
        let told = self.reported();
        if let Some(saved) = self.saved.last() {
            self.changed.clone_from(&saved.changed);
            self.block.clone_from(&saved.block);
        }
        self.reported().into_iter().filter(|setting| !told.contains(setting)).collect()
    }

    /// Ends a transaction: forgets `SET LOCAL`, and `SET` too when it was rolled back. What the client is to be told of that.
    pub(crate) fn end_transaction(&mut self, is_committed: bool) -> Vec<(String, String)> {
        self.saved.clear();
        let Some(block) = self.block.take() else { return Vec::new() };
        let told = self.reported();
        self.changed = if is_committed { block.after } else { block.before };
        self.reported().into_iter().filter(|setting| !told.contains(setting)).collect()
    }

    /// Every setting with its value.
    pub(crate) fn all(&self) -> Vec<SettingRow> {
        let row = |definition: &Definition| SettingRow {
            name: definition.name,
            value: self.value(definition),
            description: definition.description,
        };
        SETTINGS.iter().map(row).collect()
    }

    /// The settings a client is told at start-up and whenever they change: PostgreSQL's spelling and value.
    pub(crate) fn reported(&self) -> Vec<(String, String)> {
        SETTINGS
            .iter()
            .filter(|definition| definition.is_reported)
            .map(|definition| (reported_name(definition.name), self.value(definition)))
            .collect()
    }

    /// `statement_timeout`, `None` when off.
    pub(crate) fn statement_timeout(&self) -> Option<Span> {
        parse_time(self.get("statement_timeout")).filter(|span| *span > Span::ZERO)
    }

    /// `lock_timeout`, `None` when off.
    pub(crate) fn lock_timeout(&self) -> Option<Duration> {
        let span = parse_time(self.get("lock_timeout")).filter(|span| *span > Span::ZERO)?;
        u64::try_from(span.micros()).ok().map(Duration::from_micros)
    }

    /// `fetch_timeout`, `None` when off.
    pub(crate) fn fetch_timeout(&self) -> Option<Span> {
        parse_time(self.get("fetch_timeout")).filter(|span| *span > Span::ZERO)
    }

    /// `group_instance_id`, `None` when empty.
    pub(crate) fn group_instance_id(&self) -> Option<String> {
        Some(self.get("group_instance_id").to_owned()).filter(|id| !id.is_empty())
    }

    /// `session_timeout`, `None` when off.
    pub(crate) fn session_timeout(&self) -> Option<Span> {
        parse_time(self.get("session_timeout")).filter(|span| *span > Span::ZERO)
    }

    /// `max_poll_interval`, `None` when off.
    pub(crate) fn max_poll_interval(&self) -> Option<Span> {
        parse_time(self.get("max_poll_interval")).filter(|span| *span > Span::ZERO)
    }

    /// When writes are acknowledged, if the session says so: else their topics do.
    pub(crate) fn durability(&self) -> Option<Durability> {
        self.changed.get("durability").and_then(|word| Durability::parse(word))
    }

    /// Whether a write waits for the continuous queries.
    pub(crate) fn implicit_flush(&self) -> bool {
        self.get("implicit_flush") == "on"
    }

    /// What the session says of when its writes end.
    pub(crate) fn ending(&self) -> Ending {
        Ending { durability: self.durability(), flushes: self.implicit_flush() }
    }

    /// The session's producer; empty for none.
    pub(crate) fn producer_id(&self) -> String {
        self.get("producer_id").to_owned()
    }

    /// The schemas of `search_path` that exist.
    pub(crate) fn search_path(&self) -> Vec<String> {
        let path = names(self.get("search_path")).unwrap_or_default();
        path.into_iter().filter(|schema| SCHEMAS.contains(&schema.as_str())).collect()
    }

    /// Where a push query begins that does not say.
    pub(crate) fn offset_reset(&self) -> Reset {
        match self.get("auto_offset_reset") {
            "earliest" => Reset::Earliest,
            "none" => Reset::None,
            _ => Reset::Latest,
        }
    }
}

/// When a write ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// When it is acknowledged, if the session says so.
    pub(crate) durability: Option<Durability>,
    /// Once continuous queries have taken it in.
    pub(crate) flushes: bool,
}

/// How long a `SET` lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetScope {
    /// Until the session ends.
    Session,
    /// As `Session`, but undone if the surrounding transaction is rolled back.
    InTransaction,
    /// Until the transaction ends.
    Local,
}

/// PostgreSQL's capitalisation, which some drivers compare exactly.
fn reported_name(name: &str) -> String {
    match name {
        "datestyle" => "DateStyle",
        "intervalstyle" => "IntervalStyle",
        "timezone" => "TimeZone",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_without_effect_are_refused() {
        let mut settings = Settings::default();
        for (name, value, code) in [
            ("timezone", "Europe/Berlin", "22023"),
            ("datestyle", "German", "22023"),
            ("nonsense", "1", "42704"),
            ("server_version", "16", "55006"),
            ("statement_timeout", "5 lightyears", "22023"),
            ("extra_float_digits", "0", "22023"),
            ("search_path", "\"a", "22023"),
            ("search_path", "a,,b", "22023"),
            ("implicit.flush", "perhaps", "22023"),
            ("emit", "every_change", "0A000"),
            ("auto_offset_reset", "middle", "22023"),
            ("session_timeout", "soon", "22023"),
            ("max_poll_interval", "5 lightyears", "22023"),
            ("group", "g", "0A000"),
        ] {
            let error = settings.set(name, value, SetScope::Session).unwrap_err();
            assert_eq!(error.sqlstate.code(), code, "{name}");
        }
    }

    #[test]
    fn a_rolled_back_set_is_undone_and_a_local_one_ends_with_its_transaction() {
        let mut settings = Settings::default();
        settings.set("statement_timeout", "1s", SetScope::Session).unwrap();
        settings.set("statement_timeout", "2s", SetScope::InTransaction).unwrap();
        settings.end_transaction(false);
        assert_eq!(settings.show("statement_timeout").unwrap(), "1s");
        settings.set("statement_timeout", "3s", SetScope::Local).unwrap();
        assert_eq!(settings.statement_timeout(), Some(Span::from_secs(3)));
        assert!(settings.end_transaction(true).is_empty());
        assert_eq!(settings.statement_timeout(), Some(Span::from_secs(1)));
        // Of what clients follow they are told.
        settings.set("application_name", "a", SetScope::Session).unwrap();
        for (scope, is_committed) in [(SetScope::Local, true), (SetScope::InTransaction, false)] {
            settings.set("application_name", "b", scope).unwrap();
            let told = settings.end_transaction(is_committed);
            assert_eq!(told, [("application_name".to_owned(), "a".to_owned())]);
        }
        settings.set("application_name", "b", SetScope::InTransaction).unwrap();
        assert!(settings.end_transaction(true).is_empty());
        // The last one counts, and RESET is a SET.
        settings.set("application_name", "c", SetScope::Local).unwrap();
        settings.set("application_name", "d", SetScope::InTransaction).unwrap();
        assert!(settings.end_transaction(true).is_empty());
        settings.reset("application_name", SetScope::InTransaction).unwrap();
        settings.reset_all(SetScope::InTransaction);
        assert_eq!(settings.statement_timeout(), None);
        settings.end_transaction(false);
        assert_eq!(settings.show("application_name").unwrap(), "d");
        assert_eq!(settings.statement_timeout(), Some(Span::from_secs(1)));
        settings.reset("application_name", SetScope::Local).unwrap();
        assert_eq!(settings.end_transaction(true), [("application_name".to_owned(), "d".to_owned())]);
    }

    #[test]
    fn reset_goes_back_to_what_the_session_began_with() {
        let mut settings = Settings::default();
        settings.set("application_name", "app", SetScope::Session).unwrap();
        settings.set("fetch_timeout", "1s", SetScope::Session).unwrap();
        settings.force("session_authorization", "u");
        settings.begin();
        let began = settings.clone();
        settings.set("application_name", "other", SetScope::Session).unwrap();
        settings.set("fetch_timeout", "2s", SetScope::Session).unwrap();
        settings.set("lock_timeout", "2s", SetScope::Session).unwrap();
        assert_eq!(
            settings.reset("application_name", SetScope::Session).unwrap(),
            Some(("application_name".to_owned(), "app".to_owned()))
        );
        settings.set("application_name", "other", SetScope::Session).unwrap();
        let told = [("application_name".to_owned(), "app".to_owned())];
        assert_eq!(settings.reset_all(SetScope::Session), told);
        assert_eq!(settings, began);
    }

    #[test]
    fn values_are_bounded() {
        let mut settings = Settings::default();
        settings.set("application_name", &"ä".repeat(40), SetScope::Session).unwrap();
        assert_eq!(settings.show("application_name").unwrap(), "ä".repeat(31));
        for name in ["group_instance_id", "search_path", "lock_timeout", "producer_id"] {
            let error = settings.set(name, &"1".repeat(VALUE_BYTES_MAX + 1), SetScope::Session).unwrap_err();
            assert_eq!(error.sqlstate, SqlState::InvalidParameterValue);
            assert!(error.message.len() < 100, "{}", error.message);
        }
    }

    #[test]
    fn what_was_set_since_a_savepoint_is_rolled_back_to_it() {
        let mut settings = Settings::default();
        settings.set("application_name", "a", SetScope::InTransaction).unwrap();
        settings.save("s");
        settings.set("application_name", "b", SetScope::InTransaction).unwrap();
        settings.save("s");
        settings.set("application_name", "c", SetScope::Local).unwrap();
        settings.set("statement_timeout", "1s", SetScope::InTransaction).unwrap();
        let told = |name: &str| [("application_name".to_owned(), name.to_owned())];
        assert_eq!(settings.roll_back_to("s"), told("b"));
        assert_eq!(settings.statement_timeout(), None);
        assert!(settings.roll_back_to("s").is_empty());
        settings.release("s");
        assert_eq!(settings.roll_back_to("s"), told("a"));
        assert!(settings.end_transaction(true).is_empty());
        assert_eq!(settings.show("application_name").unwrap(), "a");
        assert!(settings.roll_back_to("s").is_empty());
    }

    #[test]
    fn the_search_path_has_the_schemas_that_exist() {
        let mut settings = Settings::default();
        assert_eq!(settings.search_path(), ["public"]);
        settings.set("search_path", "nosuch, \"Public\",MILLSTREAM , \"public\"", SetScope::Session).unwrap();
        assert_eq!(settings.search_path(), ["millstream", "public"]);
        assert_eq!(names("\"a\"\"b, c\" , d").unwrap(), ["a\"b, c", "d"]);
        assert_eq!(quote_name("$user"), "\"$user\"");
        for nothing in ["", "\"\""] {
            settings.set("search_path", nothing, SetScope::Session).unwrap();
            assert!(settings.search_path().is_empty());
        }
    }

    #[test]
    fn times_are_shown_as_postgresql_shows_them() {
        let mut settings = Settings::default();
        for (value, shown) in [
            ("100000", "100s"),
            ("120 s", "2min"),
            ("90s", "90s"),
            ("1500", "1500ms"),
            ("2.5", "2500us"),
            ("36 hours", "36h"),
            ("48h", "2d"),
            ("0", "0"),
            ("0min", "0"),
        ] {
            settings.set("lock_timeout", value, SetScope::Session).unwrap();
            assert_eq!(settings.show("lock_timeout").unwrap(), shown, "{value}");
        }
    }

    #[test]
    fn kafka_style_names_are_synonyms() {
        let mut settings = Settings::default();
        settings.set("auto.offset.reset", "Earliest", SetScope::Session).unwrap();
        assert_eq!(settings.offset_reset(), Reset::Earliest);
        settings.set("auto.offset.reset", "NONE", SetScope::Session).unwrap();
        assert_eq!(settings.show("auto_offset_reset").unwrap(), "none");
        assert_eq!(settings.offset_reset(), Reset::None);
    }

    #[test]
    fn members_of_groups_have_settings_that_may_be_off() {
        let mut settings = Settings::default();
        assert_eq!(settings.group_instance_id(), None);
        assert_eq!(settings.session_timeout(), Some(Span::from_secs(45)));
        assert_eq!(settings.max_poll_interval(), Some(Span::from_secs(300)));
        for (name, value) in [("group_instance_id", "a b"), ("session_timeout", "0"), ("max_poll_interval", "0s")] {
            settings.set(name, value, SetScope::Session).unwrap();
        }
        assert_eq!(settings.group_instance_id().as_deref(), Some("a b"));
        assert_eq!((settings.session_timeout(), settings.max_poll_interval()), (None, None));
        settings.set("session_timeout", "1500", SetScope::Session).unwrap();
        assert_eq!(settings.session_timeout(), Some(Span::from_micros(1_500_000)));
    }
}
