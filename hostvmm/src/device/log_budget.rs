//! A bound on the lines that a guest can make the host log: [`LogBudget`].

/// Lines that may still be logged. The last one says that it is the last.
#[derive(Clone, Debug)]
pub struct LogBudget {
    left: u32,
}

impl LogBudget {
    /// A budget of `lines`.
    pub fn new(lines: u32) -> Self {
        Self { left: lines }
    }

    /// The line to log, or `None` once the budget is used up.
    pub fn line(&mut self, text: impl FnOnce() -> String) -> Option<String> {
        self.left = self.left.checked_sub(1)?;
        let text = text();
        Some(if self.left == 0 { format!("{text} (further such lines are not shown)") } else { text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_so_and_then_nothing_is_logged() {
        let mut budget = LogBudget::new(2);
        assert_eq!(budget.line(|| "one".into()).unwrap(), "one");
        assert!(budget.line(|| "two".into()).unwrap().contains("not shown"));
        assert_eq!(budget.line(|| unreachable!("no line is made in vain")), None);
    }
}
