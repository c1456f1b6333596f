//! The table of figures.
//!
//! A line has the figure, its aim, their ratio and whether the aim is met. A ratio to a peer says how many times as fast
//! as the peer the server is.

use std::fmt;
use std::time::Duration;

/// What is asked of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim {
    /// No less than this.
    AtLeast(f64),
    /// Less than this.
    Under(f64),
}

impl Aim {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(least) => figure >= least,
            Self::Under(most) => figure < most,
        }
    }

    fn value(self) -> f64 {
        match self {
            Self::AtLeast(value) | Self::Under(value) => value,
        }
    }
}

/// How a figure is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    /// Milliseconds.
    Millis,
    /// A number per second of what is named.
    PerSecond(&'static str),
    /// Mebibytes.
    Mebibytes,
    /// Kibibytes.
    Kibibytes,
    /// Seconds of one core's time.
    CoreSeconds,
    /// Of one core.
    Percent,
    /// A multiple of what is named.
    Times(&'static str),
    /// Millions of bytes per second.
    MegabytesPerSecond,
    /// Seconds of one core's time for each million of what is named.
    CoreSecondsPerMillion(&'static str),
    /// A number of what is named.
    Count(&'static str),
}

impl Unit {
    /// Whether a smaller figure is the better one.
    pub(crate) fn is_better_when_less(self) -> bool {
        !matches!(self, Self::PerSecond(_) | Self::MegabytesPerSecond | Self::Times(_) | Self::Count(_))
    }

    fn show(self, figure: f64) -> String {
        match self {
            Self::Millis => format!("{figure:.3} ms"),
            Self::PerSecond(what) => format!("{} {what}/s", thousands(figure)),
            Self::Mebibytes => format!("{figure:.0} MiB"),
            Self::Kibibytes => format!("{figure:.1} KiB"),
            Self::CoreSeconds => format!("{figure:.2} s of a core"),
            Self::Percent => format!("{figure:.2} %"),
            Self::Times(what) => format!("{figure:.2} × {what}").trim_end().to_owned(),
            Self::MegabytesPerSecond => format!("{figure:.1} MB/s"),
            Self::CoreSecondsPerMillion(what) => format!("{figure:.2} s of a core / 1,000,000 {what}"),
            Self::Count(what) => format!("{} {what}", thousands(figure)),
        }
    }
}

/// A whole number with separators.
pub(crate) fn thousands(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// All figures of a run, in order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<[String; 5]>,
    notes: Vec<String>,
}

impl Report {
    /// A figure with an aim.
    pub(crate) fn aimed(&mut self, measure: impl Into<String>, figure: f64, unit: Unit, aim: Aim) {
        let sign = match aim {
            Aim::AtLeast(_) => "≥",
            Aim::Under(_) => "<",
        };
        self.push([
            measure.into(),
            unit.show(figure),
            format!("{sign} {}", unit.show(aim.value())),
            format!("{:.2}", figure / aim.value()),
            if aim.is_met(figure) { "met" } else { "missed" }.to_owned(),
        ]);
    }

    /// A figure without an aim.
    pub(crate) fn plain(&mut self, measure: impl Into<String>, figure: f64, unit: Unit) {
        self.push([measure.into(), unit.show(figure), String::new(), String::new(), String::new()]);
    }

    /// What follows belongs to this work.
    pub(crate) fn heading(&mut self, work: &str) {
        self.push([work.to_owned(), String::new(), String::new(), String::new(), String::new()]);
    }

    /// How many times as fast as another the server is.
    pub(crate) fn ratio(&mut self, measure: impl Into<String>, faster: f64, aim: Option<Aim>) {
        match aim {
            Some(aim) => self.aimed(measure, faster, Unit::Times(""), aim),
            None => self.plain(measure, faster, Unit::Times("")),
        }
    }

    /// Something to know about the run.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        eprintln!("{note}");
        self.notes.push(note);
    }

    fn push(&mut self, line: [String; 5]) {
        eprintln!("  {}  {}  {}", line[0], line[1], line[4]);
        self.lines.push(line);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["measure", "figure", "aim", "ratio", ""].map(str::to_owned);
        let rule = || std::iter::repeat_n("-", 3).collect::<String>();
        let lines: Vec<&[String; 5]> = std::iter::once(&head).chain(&self.lines).collect();
        let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..5).map(width).collect();
        for (number, line) in lines.iter().enumerate() {
            for (text, width) in line.iter().zip(&widths) {
                write!(f, "| {text:<width$} ")?;
            }
            writeln!(f, "|")?;
            if number == 0 {
                for width in &widths {
                    write!(f, "|{:-<1$}", rule(), width + 2)?;
                }
                writeln!(f, "|")?;
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

/// The value below which `part` of the sorted `times` lie, in milliseconds.
pub(crate) fn quantile(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
    times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// The middle one of `times`, in milliseconds.
pub(crate) fn median(times: &mut [Duration]) -> f64 {
    quantile(times, 0.5)
}

/// The middle one of `figures`.
pub(crate) fn middle(figures: &mut [f64]) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
