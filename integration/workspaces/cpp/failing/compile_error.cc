#include <string>

int Length(const std::string& text) {
  return text.length_of_this_is_not_a_member();
}

#warning "a warning before the end"
