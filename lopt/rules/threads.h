// Threads for the kernels of the rules on a CPU.
#pragma once
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace lopt {

// What starts a parallel region of the OpenMP runtime that PyTorch has loaded; null where there is none.
//
// After a region that runtime's threads spin for a while in case there comes another. Threads of our own would share the
// cores with them, and take twice as long.
using Region = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline Region region() {
    static const auto found = reinterpret_cast<Region>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

// Runs work(0), .., work(count - 1) on some threads.
template <class Work>
void spread(int64_t count, int64_t threads, const Work& work) {
    std::atomic<int64_t> next{0};
    auto loop = [&] {
        for (int64_t i; (i = next.fetch_add(1)) < count;) work(i);
    };
    if (count < 2 || threads < 2) return loop();
    if (Region start = region()) {  // always of all threads: a smaller region would end some of them
        start([](void* on) { (*static_cast<decltype(loop)*>(on))(); }, &loop, static_cast<unsigned>(threads), 0);
        return;
    }
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(loop);
    } catch (const std::system_error&) {
        // No more threads are to be had: those that there are do the work.
    }
    loop();
    for (auto& other : others) other.join();
}

}  // namespace lopt
