#include "generated/squares.h"
#include "tests/check.h"

int main() {
  CheckEqual(sizeof(kSquares) / sizeof(kSquares[0]), 10u, "table length");
  for (long i = 0; i < 10; ++i) CheckEqual(kSquares[i], i * i, "square");
}
