// Share work among the threads torch already has; a second pool would fight with them for the cores.
#pragma once

#include <cstdint>

namespace lad {

// Call body(context, task) for every task in [0, tasks) on up to `threads` threads; which thread takes which task is left open.
// Without an OpenMP runtime in the process (or away from Linux) the calling thread does them all.
void parallel_for(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context);

template <typename Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
    parallel_for(
        tasks, threads, [](void* context, int64_t task) { (*static_cast<const Body*>(context))(task); }, const_cast<Body*>(&body));
}

}  // namespace lad
