//! Two-by-two matrices, enough for Fibonacci numbers by repeated squaring.
use std::ops::Mul;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matrix(pub [[u64; 2]; 2]);

pub const IDENTITY: Matrix = Matrix([[1, 0], [0, 1]]);

impl Mul for Matrix {
    type Output = Matrix;

    fn mul(self, right: Matrix) -> Matrix {
        let mut product = [[0; 2]; 2];
        for (row, line) in product.iter_mut().enumerate() {
            for (column, cell) in line.iter_mut().enumerate() {
                *cell = (0..2).map(|k| self.0[row][k] * right.0[k][column]).sum();
            }
        }
        Matrix(product)
    }
}

pub fn power(base: Matrix, exponent: u32) -> Matrix {
    match exponent {
        0 => IDENTITY,
        odd if odd % 2 == 1 => base * power(base, odd - 1),
        even => {
            let half = power(base, even / 2);
            half * half
        }
    }
}

pub fn fibonacci(index: u32) -> u64 {
    power(Matrix([[1, 1], [1, 0]]), index).0[0][1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_changes_nothing() {
        let any = Matrix([[2, 3], [5, 7]]);
        assert_eq!(any * IDENTITY, any);
    }

    #[test]
    fn fibonacci_of_ten_is_fifty_five() {
        assert_eq!(fibonacci(10), 55);
    }
}
