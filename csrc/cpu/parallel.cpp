#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace lad {

namespace {

// The entry point of GCC's OpenMP runtime, which LLVM's and Intel's offer too.
using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);

#if defined(__linux__)
int find_runtime(dl_phdr_info* library, size_t, void* found) {
    const char* name = library->dlpi_name;
    if (name == nullptr || (!std::strstr(name, "libgomp") && !std::strstr(name, "libiomp") && !std::strstr(name, "libomp"))) return 0;
    void* handle = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) return 0;
    *static_cast<Fork*>(found) = reinterpret_cast<Fork>(dlsym(handle, "GOMP_parallel"));
    return *static_cast<Fork*>(found) != nullptr;
}
#endif

Fork runtime() {
    // Looked up instead of linked: torch brings a runtime under a name and a path of its own.
    static const Fork fork = [] {
        Fork found = nullptr;
#if defined(__linux__)
        dl_iterate_phdr(find_runtime, &found);
#endif
        return found;
    }();
    return fork;
}

struct Team {
    std::atomic<int64_t> next;
    int64_t tasks;
    void (*body)(void*, int64_t);
    void* context;
};

void work(void* shared) {
    Team& team = *static_cast<Team*>(shared);
    for (int64_t task = team.next++; task < team.tasks; task = team.next++) team.body(team.context, task);
}

}  // namespace

void parallel_for(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context) {
    Team team{{0}, tasks, body, context};
    const int64_t wanted = std::min<int64_t>(threads, tasks);
    if (wanted > 1 && runtime() != nullptr)
        runtime()(work, &team, static_cast<unsigned>(wanted), 0);
    else
        work(&team);
}

}  // namespace lad
