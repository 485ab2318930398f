#include "lib09/lib09.h"
#include "tests/check.h"
#include "tests/lib09_expected.h"

int main() {
  for (int unit = 0; unit < lib09::kUnits; ++unit) {
    CheckEqual(lib09::kAll[unit](1), kExpected[unit], "value of a unit");
  }
}
