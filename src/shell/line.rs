//! Reading what is typed: rustyline, with a history kept between runs.
//!
//! Leaves out what a line means. A line may be a paste of many.

use crate::env;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::path::PathBuf;

/// What the reader of lines gives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// A line, or a pasted text.
    Line(String),
    /// Ctrl-C: what was begun is forgotten.
    Interrupted,
    /// Ctrl-D: the shell is left.
    End,
}

/// The terminal's editor.
pub(crate) struct Editor {
    editor: Option<DefaultEditor>,
    history: Option<PathBuf>,
}

impl Editor {
    /// Opens the terminal and the history: `MILLSTREAM_HISTORY`, or `.millstream_history` in the home directory.
    pub(crate) fn open() -> Result<Self, String> {
        let mut editor = DefaultEditor::new().map_err(|error| format!("cannot use the terminal: {error}"))?;
        let history = env::variable("MILLSTREAM_HISTORY")
            .map(PathBuf::from)
            .or_else(|| env::variable("HOME").map(|home| PathBuf::from(home).join(".millstream_history")));
        if let Some(path) = &history {
            // The first run has none.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor: Some(editor), history })
    }

    /// Reads one line, on a thread that may block.
    pub(crate) async fn read(&mut self, prompt: &str) -> Typed {
        let Some(mut editor) = self.editor.take() else { return Typed::End };
        let prompt = prompt.to_owned();
        let read = env::spawn_blocking(move || {
            let line = editor.readline(&prompt);
            (editor, line)
        });
        let Ok((editor, line)) = read.await else { return Typed::End };
        self.editor = Some(editor);
        match line {
            Ok(line) => Typed::Line(line),
            Err(ReadlineError::Interrupted) => Typed::Interrupted,
            Err(_) => Typed::End,
        }
    }

    /// Remembers a statement, also for later runs.
    pub(crate) fn remember(&mut self, statement: &str) {
        let Some(editor) = &mut self.editor else { return };
        let is_new = editor.add_history_entry(statement).unwrap_or(false);
        if let (true, Some(path)) = (is_new, &self.history) {
            // A history that cannot be written costs only the history.
            let _ = editor.append_history(path);
        }
    }
}
