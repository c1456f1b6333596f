//! A list that grows without moving what it holds, so that it never takes memory twice.

/// Values of a page.
const PAGE: usize = 1 << 12;

/// Values by number, from 0 on.
#[derive(Debug)]
pub(super) struct Paged<T> {
    pages: Vec<Vec<T>>,
}

impl<T> Paged<T> {
    /// No values yet.
    pub(super) fn new() -> Self {
        Self { pages: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * PAGE + last.len())
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.pages.get(number as usize / PAGE)?.get(number as usize % PAGE)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.pages.get_mut(number as usize / PAGE)?.get_mut(number as usize % PAGE)
    }

    pub(super) fn push(&mut self, value: T) {
        match self.pages.last_mut().filter(|last| last.len() < PAGE) {
            Some(last) => last.push(value),
            None => {
                let mut page = Vec::new();
                // The first one grows: many lists are short.
                if !self.pages.is_empty() {
                    page.reserve_exact(PAGE);
                }
                page.push(value);
                self.pages.push(page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_numbers() {
        let mut list = Paged::new();
        for number in 0..3 * PAGE + 5 {
            assert_eq!((list.len(), list.get(number as u32)), (number, None));
            list.push(number);
        }
        *list.get_mut(PAGE as u32).unwrap() = 7;
        let values: Vec<usize> = (0..list.len() as u32).map(|number| *list.get(number).unwrap()).collect();
        assert_eq!(values, (0..3 * PAGE + 5).map(|number| if number == PAGE { 7 } else { number }).collect::<Vec<_>>());
    }
}
