module migcompat.io/launcher

go 1.26.0
