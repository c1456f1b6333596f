//! How long to wait for company on a slow disk, from how long syncs took lately.
//!
//! Owns that rule alone, as pure state; its users say what they wait for. Where the disk is fast nobody waits: there a wait
//! costs more than it saves. One slow sync does not make a disk slow.

use std::time::Duration;

/// The fastest of so many counts.
const RECENT: usize = 8;
/// A faster disk is not waited for.
const TIME_MIN: Duration = Duration::from_millis(1);
/// The part of that time that may be waited.
const PART: u32 = 2;
/// The longest that may be waited.
const WAIT_MAX: Duration = Duration::from_millis(25);
/// Times that nobody waits after one did in vain.
const PAUSE: u32 = 8;

/// What was learnt from the last times.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    recent: [Duration; RECENT],
    next: usize,
    pause: u32,
}

impl Patience {
    /// It took so long this time.
    pub(crate) fn took(&mut self, time: Duration) {
        self.recent[self.next % RECENT] = time;
        self.next = (self.next + 1) % RECENT;
        self.pause = self.pause.saturating_sub(1);
    }

    /// How long the next may wait.
    pub(crate) fn time(&self) -> Duration {
        let fastest = self.recent.iter().min().copied().unwrap_or_default();
        if self.pause > 0 || fastest < TIME_MIN { Duration::ZERO } else { (fastest / PART).min(WAIT_MAX) }
    }

    /// Those who were waited for did not come.
    pub(crate) fn waited_in_vain(&mut self) {
        self.pause = PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_that_stays_slow_is_waited_for_and_not_in_vain_again_and_again() {
        let mut patience = Patience::default();
        let millis = Duration::from_millis;
        for _ in 1..RECENT {
            patience.took(millis(40));
            assert_eq!(patience.time(), Duration::ZERO);
        }
        patience.took(millis(30));
        assert_eq!(patience.time(), millis(15));
        patience.waited_in_vain();
        for _ in 1..PAUSE {
            patience.took(millis(400));
            assert_eq!(patience.time(), Duration::ZERO);
        }
        patience.took(millis(400));
        assert_eq!(patience.time(), WAIT_MAX);
        patience.took(Duration::from_micros(999));
        assert_eq!(patience.time(), Duration::ZERO);
    }
}
