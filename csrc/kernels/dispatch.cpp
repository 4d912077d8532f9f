// Picks a kernel table by what the CPU and the operating system support. Knows names and CPU flags, no arithmetic.
#include "kernels/dispatch.h"

#include <cstdlib>

#include "base/errors.h"
#include "kernels/levels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace dllama {
namespace {

struct Level {
  const char* name;
  bool (*available)();        // in this CPU, and enabled by the operating system
  void (*install)(Kernels&);  // null: not built for this architecture
};

#if defined(__x86_64__)
// Not a name that clang 14's builtin knows.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// The builtins also ask the operating system (XGETBV) whether it saves the wide registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

// Leaf 7, subleaf 1, EAX bit 4: not a name that the builtins of gcc 12 and clang 14 know.
bool has_avx_vnni() {
  unsigned eax, ebx, ecx, edx;
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
}

bool has_avx512_vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

void install_avx2(Kernels& table) {
  install_avx2_matmul(table);
  install_avx2_attention(table);
  install_avx2_vector(table);
}

void install_avx2_vnni(Kernels& table) {
  install_avx2(table);
  install_avx_vnni(table);
}

void install_vnni(Kernels& table) {
  install_avx2(table);
  install_avx512_vnni(table);
  install_avx512_attention(table);
  install_avx512_vector(table);
}
#else
constexpr bool (*has_avx512_vnni)() = nullptr;
constexpr void (*install_vnni)(Kernels&) = nullptr;
constexpr bool (*has_avx_vnni)() = nullptr;
constexpr void (*install_avx2_vnni)(Kernels&) = nullptr;
constexpr bool (*has_avx2)() = nullptr;
constexpr void (*install_avx2)(Kernels&) = nullptr;
#endif

bool always() {
  return true;
}

#if defined(__aarch64__)
#if defined(__APPLE__)
bool has_dotprod() {
  return true;
}  // every Apple M

// M2 and later.
bool has_i8mm() {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &value, &size, nullptr, 0) == 0 && value != 0;
}
#else
// Bit 20 of AT_HWCAP and bit 13 of AT_HWCAP2, which old C libraries have no names for.
bool has_dotprod() {
  return (getauxval(AT_HWCAP) >> 20 & 1) != 0;
}
bool has_i8mm() {
  return has_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
}
#endif
void install_neon_dotprod(Kernels& table) {
  install_neon(table);
  install_dotprod(table);
}
void install_neon_i8mm(Kernels& table) {
  install_neon_dotprod(table);
  install_i8mm(table);
}
constexpr void (*install_plain_neon)(Kernels&) = install_neon;
#else
constexpr bool (*has_i8mm)() = nullptr;
constexpr void (*install_neon_i8mm)(Kernels&) = nullptr;
constexpr bool (*has_dotprod)() = nullptr;
constexpr void (*install_neon_dotprod)(Kernels&) = nullptr;
constexpr void (*install_plain_neon)(Kernels&) = nullptr;
#endif

void install_nothing(Kernels&) {}

// Best first within an architecture. Every level starts from the generic table.
constexpr Level kLevels[] = {
    {"avx512vnni", has_avx512_vnni, install_vnni},
    {"avxvnni", has_avx_vnni, install_avx2_vnni},
    {"avx2", has_avx2, install_avx2},
    {"i8mm", has_i8mm, install_neon_i8mm},
    {"dotprod", has_dotprod, install_neon_dotprod},
    {"neon", always, install_plain_neon},
    {"generic", always, install_nothing},
};
constexpr size_t kNumLevels = sizeof(kLevels) / sizeof(kLevels[0]);

bool runs_here(const Level& level) {
  return level.install != nullptr && level.available();
}

std::string usable_names() {
  std::string names;
  for (const std::string& name : supported_isas()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

// Index in kLevels of a level that runs here; throws UnsupportedIsa otherwise.
size_t find_level(const std::string& isa) {
  for (size_t i = 0; i < kNumLevels; i++) {
    if (isa != kLevels[i].name) continue;
    if (runs_here(kLevels[i])) return i;
    const bool built = kLevels[i].install != nullptr;
    throw UnsupportedIsa("instruction set '" + isa + "' " +
                         (built ? "is not supported by this CPU" : "is not built for this architecture") +
                         "; use one of: " + usable_names());
  }
  throw UnsupportedIsa("unknown instruction set '" + isa + "'; use one of: " + usable_names());
}

// Tables of all levels that run here, filled once; the others stay empty.
const Kernels* tables() {
  static const struct Tables {
    Kernels of[kNumLevels] = {};
    Tables() {
      for (size_t i = 0; i < kNumLevels; i++) {
        if (!runs_here(kLevels[i])) continue;
        install_generic(of[i]);
        kLevels[i].install(of[i]);
        of[i].isa = kLevels[i].name;
      }
    }
  } tables;
  return tables.of;
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Level& level : kLevels) {
    if (runs_here(level)) names.push_back(level.name);
  }
  return names;
}

const Kernels& kernels_for(const std::string& isa) {
  return tables()[find_level(isa)];
}

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const char* forced = std::getenv("DLLAMA_ISA");
    if (forced != nullptr && *forced != '\0') return kernels_for(forced);
    return kernels_for(supported_isas().front());
  }();
  return chosen;
}

}  // namespace dllama
