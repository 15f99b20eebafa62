"""Asks for trials of one study and tells their values, in several processes, for so many seconds; prints how many."""

import multiprocessing
import sys
import time

import optuna

STUDY = "bench"


def work(url, secs, start, told):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(
        study_name=STUDY,
        storage=optuna.storages.RDBStorage(url),
        # The cheapest there is: what is compared is the storage.
        sampler=optuna.samplers.RandomSampler(),
    )
    start.wait()
    began = time.monotonic()
    count = 0
    while time.monotonic() - began < secs:
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        study.tell(trial, 1.0)
        count += 1
    told.put(count / (time.monotonic() - began))


def main():
    url, processes, secs = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(
        study_name=STUDY, storage=optuna.storages.RDBStorage(url), load_if_exists=True
    )
    start, told = multiprocessing.Barrier(processes), multiprocessing.Queue()
    workers = [
        multiprocessing.Process(target=work, args=(url, secs, start, told))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    print(sum(told.get() for _ in workers))
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
