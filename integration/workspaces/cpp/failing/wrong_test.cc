#include <iostream>

int main() {
  std::cout << "two and two make five\n";
  return 7;
}
