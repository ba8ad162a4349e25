"""Ray and this machine: sessions, resources, authentication, memory, threads, files, progress lines."""
