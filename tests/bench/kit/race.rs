//! Parties that take turns at the same work, so that a busy machine slows all of them alike.

use super::report::{Aim, Report, Unit, middle};
use async_trait::async_trait;
use std::collections::{HashMap, HashSet};

/// One who takes part.
#[async_trait(?Send)]
pub(crate) trait Party {
    /// Does the work once, or for one turn's time; the figure.
    async fn turn(&mut self) -> anyhow::Result<f64>;
}

struct Runner<'a> {
    name: String,
    party: Box<dyn Party + 'a>,
    figures: Vec<f64>,
    /// Who is compared with it, and what is asked of the comparison.
    versus: Vec<(String, Option<f64>)>,
}

/// A work, and those who do it.
pub(crate) struct Race<'a> {
    work: String,
    unit: Unit,
    runners: Vec<Runner<'a>>,
}

impl<'a> Race<'a> {
    /// A work whose figure has this unit: the more the better, if it is a rate; the less the better, if it is a time.
    pub(crate) fn new(work: impl Into<String>, unit: Unit) -> Self {
        Self { work: work.into(), unit, runners: Vec::new() }
    }

    /// Adds one of ours.
    pub(crate) fn ours(&mut self, name: &str, party: impl Party + 'a) {
        self.peer(name, party, &[]);
    }

    /// Adds a peer: each of ours in `versus` is compared with it, and shall be so many times as fast.
    pub(crate) fn peer(&mut self, name: &str, party: impl Party + 'a, versus: &[(&str, Option<f64>)]) {
        let versus = versus.iter().map(|(ours, aim)| ((*ours).to_owned(), *aim)).collect();
        self.runners.push(Runner { name: name.to_owned(), party: Box::new(party), figures: Vec::new(), versus });
    }

    /// Lets each take its turn `rounds` times after one that is not counted; the middle figure of each.
    ///
    /// Who fails is left out from then on, with a note.
    pub(crate) async fn run(mut self, report: &mut Report, rounds: usize) -> HashMap<String, f64> {
        let mut order: Vec<usize> = (0..self.runners.len()).collect();
        let mut failed = HashSet::new();
        for round in 0..=rounds {
            // What one leaves behind, such as writes the disk is still busy with, must not always meet the same other.
            shuffle(&mut order, round);
            for at in &order {
                let runner = &mut self.runners[*at];
                if failed.contains(at) {
                    continue;
                }
                match runner.party.turn().await {
                    Ok(figure) if round > 0 => runner.figures.push(figure),
                    Ok(_) => {}
                    Err(error) => {
                        report.note(format!("{}, {}: not measured: {error:#}", self.work, runner.name));
                        failed.insert(*at);
                    }
                }
            }
        }
        let runners = self.runners.into_iter().enumerate().filter(|(at, _)| !failed.contains(at));
        self.runners = runners.map(|(_, runner)| runner).collect();
        let figures: HashMap<String, f64> =
            self.runners.iter_mut().map(|runner| (runner.name.clone(), middle(&mut runner.figures))).collect();
        report.heading(&self.work);
        for runner in &self.runners {
            let figure = figures.get(&runner.name).copied().unwrap_or(f64::NAN);
            report.plain(format!("  {}", runner.name), figure, self.unit);
            for (ours, aim) in &runner.versus {
                let Some(own) = figures.get(ours) else { continue };
                let faster = if self.unit.is_better_when_less() { figure / own } else { own / figure };
                report.ratio(format!("    {ours} against it"), faster, aim.map(Aim::AtLeast));
            }
        }
        figures
    }
}

/// Another order for each round, the same in each run.
fn shuffle(order: &mut [usize], round: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(round as u64 + 1);
    for at in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(at, (state >> 33) as usize % (at + 1));
    }
}
