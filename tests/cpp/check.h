// A small test harness: register with TEST, check with CHECK..., end the file with CHECK_MAIN().
//
// A failed check is printed with its values and recorded; the test goes on. Checks may be made on any thread. The
// program takes name filters as arguments (a test runs if its name contains one of them; none: all run), prints
// `N passed, N failed` as its last line, and exits with 1 if anything failed or nothing ran.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <iostream>
#include <mutex>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace check {

struct Test {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

// For tests made in loops; TEST calls it for the others.
inline bool add_test(std::string name, std::function<void()> body) {
  tests().push_back({std::move(name), std::move(body)});
  return true;
}

inline std::atomic<int>& failures() {
  static std::atomic<int> count{0};
  return count;
}

// What this thread is looking at, innermost last: printed with a failure.
inline std::vector<std::string>& scopes() {
  thread_local std::vector<std::string> stack;
  return stack;
}

// Names the case for as long as it lives, so that a failure inside a loop says where: Scope s("rows", 3, "tokens", 2).
class Scope {
 public:
  template <typename... Parts>
  explicit Scope(const Parts&... parts) {
    std::ostringstream text;
    ((text << parts << ' '), ...);
    scopes().push_back(text.str());
  }
  ~Scope() { scopes().pop_back(); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
};

template <typename T>
std::string show(const T& value) {
  std::ostringstream text;
  text.precision(9);
  if constexpr (std::is_enum_v<T>) {
    text << static_cast<long long>(value);
  } else if constexpr (std::is_integral_v<T> && sizeof(T) == 1) {
    text << static_cast<int>(value);
  } else if constexpr (requires { text << value; }) {
    text << value;
  } else {
    text << "(value)";
  }
  return text.str();
}

inline void fail(const char* file, int line, const std::string& what) {
  constexpr int kPrinted = 20;  // per test: the first say enough
  static std::mutex mutex;
  if (failures().fetch_add(1) >= kPrinted) return;
  const std::lock_guard lock(mutex);
  std::cout << file << ":" << line << ": " << what;
  for (const std::string& scope : scopes()) std::cout << "  [" << scope << "]";
  std::cout << std::endl;
}

template <typename Left, typename Right>
void equal(const Left& left, const Right& right, const char* text, const char* file, int line) {
  if (left == right) return;
  fail(file, line, std::string(text) + ": " + show(left) + " is not " + show(right));
}

// |left - right| <= tolerance; also false if one of them is a NaN.
inline void near(double left, double right, double tolerance, const char* text, const char* file, int line) {
  if (std::abs(left - right) <= tolerance) return;
  fail(file, line, std::string(text) + ": " + show(left) + " is not within " + show(tolerance) + " of " + show(right));
}

// True where every byte is the same, NaNs and signed zeros included.
template <typename T>
bool same_bits(const std::vector<T>& left, const std::vector<T>& right) {
  if (left.size() != right.size()) return false;
  return left.empty() || std::memcmp(left.data(), right.data(), left.size() * sizeof(T)) == 0;
}

// Returns the number of failures of one test.
inline int run(const Test& test) {
  failures() = 0;
  try {
    test.body();
  } catch (const std::exception& error) {
    fail(test.name.c_str(), 0, std::string("unexpected exception: ") + error.what());
  }
  if (failures() > 0) std::cout << "FAILED " << test.name << " (" << failures() << " checks)" << std::endl;
  return failures();
}

inline int run_all(int argc, char** argv) {
  int passed = 0, failed = 0;
  for (const Test& test : tests()) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; i++) wanted = wanted || test.name.find(argv[i]) != std::string::npos;
    if (!wanted) continue;
    (run(test) == 0 ? passed : failed)++;
  }
  std::cout << passed << " passed, " << failed << " failed" << std::endl;
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                      \
  static void test_##name();                                            \
  static const bool added_##name = check::add_test(#name, test_##name); \
  static void test_##name()

#define CHECK(condition) ((condition) ? void() : check::fail(__FILE__, __LINE__, "CHECK(" #condition ") is false"))
#define CHECK_EQ(left, right) check::equal(left, right, #left, __FILE__, __LINE__)
#define CHECK_NEAR(left, right, tolerance) check::near(left, right, tolerance, #left, __FILE__, __LINE__)

// The expression must throw `type`, and its message must contain `part` (use "" for any).
#define CHECK_THROWS(expression, type, part)                                                             \
  do {                                                                                                   \
    try {                                                                                                \
      static_cast<void>(expression);                                                                     \
      check::fail(__FILE__, __LINE__, #expression " did not throw");                                     \
    } catch (const type& error) {                                                                        \
      if (std::string(error.what()).find(part) == std::string::npos) {                                   \
        check::fail(__FILE__, __LINE__, std::string("message lacks '") + (part) + "': " + error.what()); \
      }                                                                                                  \
    }                                                                                                    \
  } while (false)

#define CHECK_MAIN()                   \
  int main(int argc, char** argv) {    \
    return check::run_all(argc, argv); \
  }
