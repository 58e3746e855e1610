# Generated from migcompat/kubelet/podresources_v1/podresources.proto by tests/tools/generate_protos.py. DO NOT EDIT!
from collections.abc import AsyncIterator

import grpc.aio

from migcompat.kubelet.podresources_v1 import podresources_pb2 as pb

class PodResourcesListerStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    List: grpc.aio.UnaryUnaryMultiCallable[pb.ListPodResourcesRequest, pb.ListPodResourcesResponse]
    GetAllocatableResources: grpc.aio.UnaryUnaryMultiCallable[pb.AllocatableResourcesRequest, pb.AllocatableResourcesResponse]
    Get: grpc.aio.UnaryUnaryMultiCallable[pb.GetPodResourcesRequest, pb.GetPodResourcesResponse]

class PodResourcesListerServicer:
    async def List(self, request: pb.ListPodResourcesRequest, context: grpc.aio.ServicerContext[pb.ListPodResourcesRequest, pb.ListPodResourcesResponse]) -> pb.ListPodResourcesResponse: ...
    async def GetAllocatableResources(self, request: pb.AllocatableResourcesRequest, context: grpc.aio.ServicerContext[pb.AllocatableResourcesRequest, pb.AllocatableResourcesResponse]) -> pb.AllocatableResourcesResponse: ...
    async def Get(self, request: pb.GetPodResourcesRequest, context: grpc.aio.ServicerContext[pb.GetPodResourcesRequest, pb.GetPodResourcesResponse]) -> pb.GetPodResourcesResponse: ...

def add_PodResourcesListerServicer_to_server(servicer: PodResourcesListerServicer, server: grpc.aio.Server) -> None: ...
