#include <fstream>
#include <string>

#include "tests/check.h"

int main() {
  std::ifstream poem("tests/data/poem.txt");
  std::string first, second, rest;
  std::getline(poem, first);
  std::getline(poem, second);
  CheckEqual(second, std::string("need not run again."), "second line of the data file");
  CheckEqual(static_cast<bool>(std::getline(poem, rest)), false, "a third line");
}
