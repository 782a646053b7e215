//! When a delivery that failed is tried again.

/// How often a delivery is tried before it is given up: after about three days.
pub const MAX_ATTEMPTS: usize = 17;

/// Seconds before the second attempt; each further wait is [`GROWTH`] times longer.
const FIRST_WAIT: i64 = 1;

/// By what the waits grow.
const GROWTH: i64 = 4;

/// Longest wait in seconds.
const LONGEST_WAIT: i64 = 8 * 3600;

/// Seconds to wait after `attempts` of them have failed, at least one of them; `None` when that were
/// enough. `chance` spreads the wait from three to five quarters of itself, so that an endpoint that was
/// away is not met by everything at once.
pub fn wait_after(attempts: usize, chance: u32) -> Option<i64> {
    if attempts >= MAX_ATTEMPTS {
        return None;
    }
    let mut wait = FIRST_WAIT;
    for _ in 1..attempts {
        wait = (wait * GROWTH).min(LONGEST_WAIT);
    }
    let spread = wait * i64::from(chance) / (2 * i64::from(u32::MAX));
    Some((wait - wait / 4 + spread).max(FIRST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_attempt_comes_at_once_and_the_last_after_days() {
        assert_eq!(wait_after(1, 0), Some(1));
        let waits = |chance| -> Vec<i64> {
            (1..).map_while(|attempts| wait_after(attempts, chance)).collect()
        };
        let (shortest, longest) = (waits(0), waits(u32::MAX));
        assert_eq!((shortest.len(), longest.len()), (MAX_ATTEMPTS - 1, MAX_ATTEMPTS - 1));
        assert!(shortest.is_sorted() && longest.is_sorted(), "{shortest:?} {longest:?}");
        assert_eq!(longest[..4], [1, 5, 20, 80]);
        for (low, high) in shortest.iter().zip(&longest) {
            assert!(low <= high && *high <= 10 * 3600, "{low} {high}");
        }
        let hours = |waits: &[i64]| waits.iter().sum::<i64>() / 3600;
        assert!(hours(&shortest) >= 48 && hours(&longest) <= 96);
    }
}
