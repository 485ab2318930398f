/// For each number below `end`, whether it is prime.
pub fn marks(end: usize) -> Vec<bool> {
    let mut marks = vec![true; end];
    for small in marks.iter_mut().take(2) {
        *small = false;
    }
    for candidate in 2..end {
        if marks[candidate] {
            for multiple in (candidate * candidate..end).step_by(candidate) {
                marks[multiple] = false;
            }
        }
    }
    marks
}
