//! One number made of what the other crates find.
use weights::{BILLION, MILLION, ONE, THOUSAND};

/// Collatz steps of 27, median of the primes below 100, digits of the 50th Fibonacci number, primes below 1000.
pub fn answer() -> u64 {
    let median = median::of_primes_below(100).unwrap_or_default();
    collatz::steps(27) * BILLION
        + median * MILLION
        + digits::sum(matrix::fibonacci(50)) * THOUSAND
        + primes::below(1000).len() as u64 * ONE
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_part_has_its_place() {
        let answer = super::answer();
        assert_eq!(answer % 1000, 168);
        assert_eq!(answer / 1000 % 1000, 46);
        assert_eq!(answer / 1_000_000 % 1000, 41);
        assert_eq!(answer / 1_000_000_000, 111);
    }
}
