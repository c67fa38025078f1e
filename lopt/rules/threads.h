// Threads for the kernels of the rules on a CPU.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace lopt {

// Runs work(0), .., work(count - 1) on some threads.
template <class Work>
void spread(int64_t count, int64_t threads, const Work& work) {
    std::atomic<int64_t> next{0};
    auto loop = [&] {
        for (int64_t i; (i = next.fetch_add(1)) < count;) work(i);
    };
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
