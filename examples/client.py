"""A plain gRPC client: submits a study and prints losses while they stream.

nhop-coordinator --serve 127.0.0.1:7000        in one terminal
python examples/client.py 127.0.0.1:7000       in another
"""

import sys

import grpc

from nhop.v1 import study_pb2, study_pb2_grpc

CONFIG = """
cluster: {ps: 0, workers: 1}
opt_stages: [[300, 4], [200, 2]]
data_instances: 1000
"""

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7000"
with grpc.insecure_channel(address) as channel:
    studies = study_pb2_grpc.StudyServiceStub(channel)
    study = studies.SubmitStudy(study_pb2.SubmitStudyRequest(yaml=CONFIG)).study
    for update in studies.WatchStudy(study_pb2.WatchStudyRequest(study_id=study.study_id)):
        if update.HasField("report"):
            trial, report = update.report.attempt.trial, update.report.report
            print(f"trial {trial}: step {report.step}, loss {report.train_loss:.6g}")
        elif update.HasField("study"):
            study = update.study
    state, best = study_pb2.StudyState.Name(study.state), study.best
    print(f"{state}: best loss {best.loss:.6g} in trial {best.number}")
