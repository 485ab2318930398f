//! Prime numbers by trial division over a sieve that lives in its own module.
mod sieve;

/// All primes below `end`, ascending.
pub fn below(end: usize) -> Vec<u64> {
    sieve::marks(end)
        .into_iter()
        .enumerate()
        .filter(|(_, is_prime)| *is_prime)
        .map(|(number, _)| number as u64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn there_are_168_primes_below_a_thousand() {
        assert_eq!(below(1000).len(), 168);
    }

    #[test]
    fn none_below_two() {
        assert!(below(2).is_empty());
    }
}
