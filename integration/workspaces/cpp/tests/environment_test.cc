#include <cstdlib>
#include <fstream>
#include <string>

#include "tests/check.h"

namespace {
std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  CheckEqual(value != nullptr, true, name);
  return value;
}
}  // namespace

int main(int argc, char** argv) {
  CheckEqual(argc, 3, "number of arguments");
  CheckEqual(std::string(argv[1]), std::string("first argument"), "first argument");
  CheckEqual(std::string(argv[2]), std::string("--second"), "second argument");
  CheckEqual(Variable("GREETING"), std::string("hello, world"), "GREETING");
  const std::string scratch = Variable("TEST_TMPDIR") + "/scratch";
  std::ofstream(scratch) << "written";
  std::string text;
  std::ifstream(scratch) >> text;
  CheckEqual(text, std::string("written"), "the scratch file");
  std::ofstream(Variable("TEST_UNDECLARED_OUTPUTS_DIR") + "/note.txt") << "left by the test\n";
}
