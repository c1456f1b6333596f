//! What a check found, for people and for machines.
//!
//! Owns the words and the JSON. Leaves out finding anything. A crash loses it.

use serde::Serialize;
use std::fmt;
use std::ops::Range;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Bytes are not what was written, or files do not agree.
    Damage,
    /// Worth knowing; nothing is wrong.
    Note,
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file, within the data directory.
    pub file: String,
    /// First byte and the one after the last, if not the whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<(u64, u64)>,
    /// The shard, if it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<u32>,
    /// The topic's name, or its id in the form `#7` where the catalog cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Offsets that cannot be read: the first, and the one after the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offsets: Option<(u64, u64)>,
    /// What does not hold.
    pub what: String,
    /// What `--repair` does about it; absent when it can do nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<String>,
}

impl Finding {
    pub(crate) fn damage(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            severity: Severity::Damage,
            file: file.into(),
            bytes: None,
            shard: None,
            topic: None,
            partition: None,
            offsets: None,
            what: what.into(),
            repair: None,
        }
    }
    pub(crate) fn note(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::damage(file, what) }
    }
    pub(crate) fn at(mut self, bytes: Range<u64>) -> Self {
        self.bytes = Some((bytes.start, bytes.end));
        self
    }
    pub(crate) fn of_shard(mut self, shard: u32) -> Self {
        self.shard = Some(shard);
        self
    }
    pub(crate) fn repaired_by(mut self, what: impl Into<String>) -> Self {
        self.repair = Some(what.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Damage => "damage",
            Severity::Note => "note",
        };
        write!(f, "{severity}: {}", self.file)?;
        if let Some((start, end)) = self.bytes {
            write!(f, ", bytes {start} to {}", end.saturating_sub(1).max(start))?;
        }
        if let Some(shard) = self.shard {
            write!(f, ", shard {shard}")?;
        }
        write!(f, ": {}", self.what)?;
        if let (Some(topic), Some(partition)) = (&self.topic, self.partition) {
            write!(f, "; topic \"{topic}\", partition {partition}")?;
        }
        if let Some((start, end)) = self.offsets {
            write!(f, ", offsets {start} to {}", end.saturating_sub(1))?;
        }
        Ok(())
    }
}

/// Everything found in a data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What was found, in the order of reading.
    pub findings: Vec<Finding>,
    /// Files read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames of the log.
    pub frames: u64,
    /// Segments.
    pub segments: u64,
    /// Their rows.
    pub rows: u64,
    /// Whether the repairs named were made.
    pub is_repaired: bool,
}

impl Report {
    /// Whether nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.damages() == 0
    }

    fn damages(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Damage).count()
    }

    /// One JSON object.
    pub fn render_json(&self) -> String {
        let value = serde_json::json!({ "status": if self.is_clean() { "clean" } else { "damaged" }, "report": self });
        value.to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
            match (&finding.repair, finding.severity) {
                (Some(repair), _) if self.is_repaired => writeln!(f, "    repaired: {repair}")?,
                (Some(repair), _) => writeln!(f, "    --repair: {repair}")?,
                (None, Severity::Damage) => writeln!(f, "    cannot be repaired: restore a backup")?,
                (None, Severity::Note) => {}
            }
        }
        writeln!(
            f,
            "{}: {} files, {} bytes, {} frames, {} segments, {} rows",
            if self.is_clean() { "clean".to_owned() } else { format!("{} damaged places", self.damages()) },
            self.files,
            self.bytes,
            self.frames,
            self.segments,
            self.rows
        )
    }
}
