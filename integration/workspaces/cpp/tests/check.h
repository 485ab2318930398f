#pragma once
#include <cstdlib>
#include <iostream>

// Ends the test with both values when they differ.
template <typename Left, typename Right>
void CheckEqual(const Left& actual, const Right& expected, const char* what) {
  if (actual == expected) return;
  std::cerr << what << ": " << actual << " where " << expected << " was expected\n";
  std::exit(1);
}
