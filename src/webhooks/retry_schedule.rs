//! When a failed delivery is retried: exponential backoff with jitter.

/// Attempts before a delivery fails for good, after about three days.
pub const MAX_ATTEMPTS: usize = 17;

/// Seconds before the second attempt.
const FIRST_BACKOFF: i64 = 1;

/// Factor from one backoff to the next.
const BACKOFF_FACTOR: i64 = 4;

/// Longest backoff in seconds, before jitter.
const MAX_BACKOFF: i64 = 8 * 3600;

/// Seconds to wait after `attempts` failed attempts, at least one; `None` after the last one. `random` is the
/// jitter: it spreads the wait from three to five quarters of itself, so that an endpoint that was down does
/// not receive all deliveries at once.
pub fn backoff(attempts: usize, random: u32) -> Option<i64> {
    if attempts >= MAX_ATTEMPTS {
        return None;
    }
    let mut wait = FIRST_BACKOFF;
    for _ in 1..attempts {
        wait = (wait * BACKOFF_FACTOR).min(MAX_BACKOFF);
    }
    let spread = wait * i64::from(random) / (2 * i64::from(u32::MAX));
    Some((wait - wait / 4 + spread).max(FIRST_BACKOFF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_attempt_comes_at_once_and_the_last_after_days() {
        assert_eq!(backoff(1, 0), Some(1));
        let waits = |random| -> Vec<i64> {
            (1..).map_while(|attempts| backoff(attempts, random)).collect()
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
