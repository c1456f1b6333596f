//! Rows as text: table, vertical, csv, json, ndjson, markdown.
//!
//! A table's widths come from the first rows and stay, so that rows can be printed as they come. Leaves out
//! where the text goes. Called by `run`.

use crate::cli::Format;
use crate::shell::client::Column;
use bytes::Bytes;
use std::borrow::Cow;
use std::fmt::Write as _;

/// A row in text.
pub(crate) type Row = Vec<Option<Bytes>>;

/// Characters a column is at most padded to.
const WIDTH_MAX: usize = 60;

/// Prints the rows of one result.
#[derive(Debug)]
pub(crate) struct Renderer {
    format: Format,
    columns: Vec<Column>,
    widths: Option<Vec<usize>>,
    rows: u64,
}

fn is_number(type_id: u32) -> bool {
    // int8, int2, int4, oid, float4, float8, numeric
    matches!(type_id, 20 | 21 | 23 | 26 | 700 | 701 | 1700)
}

fn text(value: Option<&Bytes>) -> Cow<'_, str> {
    value.map_or(Cow::Borrowed(""), |bytes| String::from_utf8_lossy(bytes))
}

/// `text` as people may see it on a terminal: control characters as escapes, so that no stored value can move the
/// cursor or hide another.
fn shown(text: &str, newline: &str, tab: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => out.push_str(newline),
            '\t' => out.push_str(tab),
            '\r' => out.push_str("\\r"),
            control if control.is_control() => {
                let _ = write!(out, "\\x{:02X}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out
}

impl Renderer {
    /// Begins a result.
    pub(crate) fn new(format: Format, mut columns: Vec<Column>) -> Self {
        if matches!(format, Format::Table | Format::Vertical | Format::Markdown) {
            columns.iter_mut().for_each(|column| column.name = shown(&column.name, "↵", "→"));
        }
        Self { format, columns, widths: None, rows: 0 }
    }

    /// Rows printed so far.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The text of some rows; the first time, with what stands before them.
    pub(crate) fn rows_text(&mut self, rows: &[Row]) -> String {
        let mut out = String::new();
        if self.widths.is_none() {
            self.begin(rows, &mut out);
        }
        for row in rows {
            self.row(row, &mut out);
            self.rows += 1;
        }
        out
    }

    /// What stands after the last row.
    pub(crate) fn end_text(&mut self) -> String {
        let mut out = String::new();
        if self.widths.is_none() {
            self.begin(&[], &mut out);
        }
        match self.format {
            Format::Table | Format::Vertical => {
                let _ = writeln!(out, "({} row{})", self.rows, if self.rows == 1 { "" } else { "s" });
            }
            Format::Json if self.rows == 0 => out.push_str("]\n"),
            Format::Json => out.push_str("\n]\n"),
            Format::Csv | Format::Ndjson | Format::Markdown => {}
        }
        out
    }

    fn begin(&mut self, rows: &[Row], out: &mut String) {
        let width = |i: usize| {
            let widest = rows.iter().map(|row| lines_width(&text(row[i].as_ref()))).max().unwrap_or(0);
            widest.max(self.columns[i].name.chars().count()).min(WIDTH_MAX)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let names = self.columns.iter().map(|column| column.name.as_str());
        match self.format {
            Format::Table => {
                let cells: Vec<String> = names.zip(&widths).map(|(name, w)| format!(" {name:^w$} ")).collect();
                out.push_str(cells.join("|").trim_end());
                out.push('\n');
                let rule: Vec<String> = widths.iter().map(|w| "-".repeat(w + 2)).collect();
                out.push_str(&rule.join("+"));
                out.push('\n');
            }
            Format::Markdown => {
                let cells: Vec<String> = names.zip(&widths).map(|(name, w)| format!(" {name:<w$} ")).collect();
                let _ = writeln!(out, "|{}|", cells.join("|"));
                let rule = self.columns.iter().zip(&widths).map(|(column, w)| match is_number(column.type_id) {
                    true => format!(" {}: ", "-".repeat(w.saturating_sub(1).max(1))),
                    false => format!(" {} ", "-".repeat((*w).max(1))),
                });
                let _ = writeln!(out, "|{}|", rule.collect::<Vec<_>>().join("|"));
            }
            Format::Csv => {
                let _ = writeln!(out, "{}", names.map(csv).collect::<Vec<_>>().join(","));
            }
            Format::Json => out.push('['),
            Format::Vertical | Format::Ndjson => {}
        }
        self.widths = Some(widths);
    }

    fn row(&self, row: &Row, out: &mut String) {
        match self.format {
            Format::Table => self.table_row(row, out),
            Format::Markdown => {
                let cells = self.aligned(row).into_iter().map(|cell| cell.replace('\\', "\\\\").replace('|', "\\|"));
                let _ = writeln!(out, "| {} |", cells.collect::<Vec<_>>().join(" | "));
            }
            Format::Vertical => {
                let width = self.columns.iter().map(|column| column.name.chars().count()).max().unwrap_or(0);
                let _ = writeln!(out, "-[ row {} ]{}", self.rows + 1, "-".repeat(width));
                for (column, value) in self.columns.iter().zip(row) {
                    let mut name = column.name.as_str();
                    for line in text(value.as_ref()).split('\n') {
                        let _ = writeln!(out, "{name:<width$} | {}", shown(line, "", "\t"));
                        name = "";
                    }
                }
            }
            Format::Csv => {
                let cell = |value: &Option<Bytes>| match value {
                    None => String::new(),
                    // An empty text is told from NULL by its quotes, as COPY has it.
                    Some(bytes) if bytes.is_empty() => "\"\"".to_owned(),
                    Some(_) => csv(&text(value.as_ref())),
                };
                let _ = writeln!(out, "{}", row.iter().map(cell).collect::<Vec<_>>().join(","));
            }
            Format::Json => {
                out.push_str(if self.rows == 0 { "\n  " } else { ",\n  " });
                out.push_str(&self.object(row));
            }
            Format::Ndjson => {
                out.push_str(&self.object(row));
                out.push('\n');
            }
        }
    }

    fn table_row(&self, row: &Row, out: &mut String) {
        let cells = self.aligned(row);
        let line = format!(" {}", cells.join(" | "));
        out.push_str(line.trim_end());
        out.push('\n');
    }

    fn aligned(&self, row: &Row) -> Vec<String> {
        let widths = self.widths.as_deref().unwrap_or_default();
        let newline = if self.format == Format::Markdown { "<br>" } else { "↵" };
        let cell = |((column, value), width): ((&Column, &Option<Bytes>), &usize)| {
            let value = shown(&text(value.as_ref()), newline, "→");
            let pad = " ".repeat(width.saturating_sub(value.chars().count()));
            if is_number(column.type_id) { format!("{pad}{value}") } else { format!("{value}{pad}") }
        };
        self.columns.iter().zip(row).zip(widths).map(cell).collect()
    }

    fn object(&self, row: &Row) -> String {
        let member = |(column, value): (&Column, &Option<Bytes>)| {
            format!("{}:{}", json_text(&column.name), json_value(column.type_id, value.as_ref()))
        };
        format!("{{{}}}", self.columns.iter().zip(row).map(member).collect::<Vec<_>>().join(","))
    }
}

fn lines_width(value: &str) -> usize {
    shown(value, "↵", "→").chars().count()
}

fn csv(value: &str) -> String {
    if value.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

fn json_text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

/// Numbers, booleans and json as they are, everything else as text.
fn json_value(type_id: u32, value: Option<&Bytes>) -> String {
    let Some(bytes) = value else { return "null".to_owned() };
    let value = String::from_utf8_lossy(bytes);
    match type_id {
        16 => (if value == "t" { "true" } else { "false" }).to_owned(),
        114 | 3802 => value.into_owned(),
        // NaN and the infinities are not JSON's numbers.
        id if is_number(id) && !value.contains(['N', 'I']) => value.into_owned(),
        _ => json_text(&value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(format: Format) -> String {
        let columns =
            vec![Column { name: "origin".to_owned(), type_id: 25 }, Column { name: "n".to_owned(), type_id: 20 }];
        let mut renderer = Renderer::new(format, columns);
        let row = |a: Option<&'static str>, b: &'static str| {
            vec![a.map(|a| Bytes::from_static(a.as_bytes())), Some(Bytes::from_static(b.as_bytes()))]
        };
        let mut text = renderer.rows_text(&[row(Some("say \"hi\", x"), "7"), row(None, "12")]);
        text.push_str(&renderer.end_text());
        text
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let value = Bytes::from_static(b"a\x1b[31m\rb\nc | d");
        let one = |format| {
            let columns = vec![Column { name: "v".to_owned(), type_id: 25 }];
            Renderer::new(format, columns).rows_text(&[vec![Some(value.clone())]])
        };
        assert!(one(Format::Table).ends_with("\n a\\x1B[31m\\rb↵c | d\n"), "{}", one(Format::Table));
        assert!(one(Format::Vertical).ends_with("v | a\\x1B[31m\\rb\n  | c | d\n"));
        assert!(one(Format::Markdown).ends_with("| a\\\\x1B[31m\\\\rb<br>c \\| d |\n"));
        // Programs get what is stored.
        assert!(one(Format::Csv).contains('\x1b'));
    }

    #[test]
    fn each_format_has_its_form() {
        assert_eq!(
            rendered(Format::Table),
            "   origin    | n\n-------------+----\n say \"hi\", x |  7\n             | 12\n(2 rows)\n"
        );
        assert_eq!(rendered(Format::Csv), "origin,n\n\"say \"\"hi\"\", x\",7\n,12\n");
        assert_eq!(
            rendered(Format::Ndjson),
            "{\"origin\":\"say \\\"hi\\\", x\",\"n\":7}\n{\"origin\":null,\"n\":12}\n"
        );
        assert!(rendered(Format::Json).starts_with("[\n  {\"origin\""));
        assert!(rendered(Format::Json).ends_with("}\n]\n"));
        assert!(rendered(Format::Markdown).contains("| say \"hi\", x |  7 |"));
        assert!(rendered(Format::Vertical).contains("origin | say \"hi\", x\nn      | 7\n"));
    }
}
