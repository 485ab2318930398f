fn main() {
    println!("answer={}", report::answer());
}
