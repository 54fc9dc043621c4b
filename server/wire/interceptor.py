"""The one interceptor around every method that is ours.

It turns every exception into (status, reason), measures every call and, where tracing is on, opens
a span under the caller's. Nothing else in the server knows gRPC statuses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import grpc
from opentelemetry import trace

from monitoring.logs import EventLogger
from monitoring.rpc_meter import RpcMeter
from monitoring.tracing import context_from_metadata
from protos.fedagg.v1 import errors_pb2
from protos.wire import ERROR_METADATA_KEY
from server.errors import ServiceError
from server.wire.identity import Context
from server.wire.status import error_detail, internal_error_detail, status_code

if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]
    Call = Callable[[Any, Context], Any]


class ServiceInterceptor(grpc.aio.ServerInterceptor):
    """Maps errors, measures and traces every call of the services that are ours.

    Args:
        methods: full names of those services' methods.
        meter: measures every call of them.
        log: told of what nobody expected.
        tracer: opens spans; None: tracing is off.
    """

    def __init__(
        self,
        methods: Collection[str],
        *,
        meter: RpcMeter,
        log: EventLogger,
        tracer: trace.Tracer | None = None,
    ) -> None:
        self._methods = frozenset(methods)
        self._meter = meter
        self._log = log
        self._tracer = tracer
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler of a method that is ours, once; give others' as they are."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        # Health and reflection are libraries': they answer in styles of their own.
        if handler is None or method not in self._methods:
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (
                handler,
                self._wrap(self.guarded(handler, method), method),
            )
        return known[1]

    def guarded(self, handler: Handler, method: str) -> Handler:
        """Return the handler behind whatever else stands before this method."""
        del method
        return handler

    def _wrap(self, handler: Handler, method: str) -> Handler:
        coders = (handler.request_deserializer, handler.response_serializer)
        # The stubs declare the synchronous call types only.
        inner: Call = cast(
            "Call",
            handler.stream_stream
            or handler.unary_stream
            or handler.stream_unary
            or handler.unary_unary,
        )
        match handler.request_streaming, handler.response_streaming:
            case True, True:
                call = self._streaming(inner, method)
                return grpc.stream_stream_rpc_method_handler(call, *coders)
            case False, True:
                call = self._streaming(inner, method)
                return grpc.unary_stream_rpc_method_handler(call, *coders)
            case True, False:
                return grpc.stream_unary_rpc_method_handler(self._single(inner, method), *coders)
            case _:
                return grpc.unary_unary_rpc_method_handler(self._single(inner, method), *coders)

    def _single(self, inner: Call, method: str) -> Call:
        async def call(request: Any, context: Context) -> Any:  # noqa: ANN401  # any message
            started, code = time.perf_counter(), grpc.StatusCode.OK
            try:
                with self._span(method, context):
                    return await inner(request, context)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:  # the edge: nothing may leak
                code, detail = self._judge(error, method)
                await _abort(context, code, detail)
            finally:
                self._meter.observe(method, code.name, time.perf_counter() - started)

        return call

    def _streaming(self, inner: Call, method: str) -> Call:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
            started, code = time.perf_counter(), grpc.StatusCode.OK
            try:
                with self._span(method, context):
                    async for response in inner(request, context):
                        yield response
            except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:  # the edge: nothing may leak
                code, detail = self._judge(error, method)
                await _abort(context, code, detail)
            finally:
                self._meter.observe(method, code.name, time.perf_counter() - started)

        return call

    def _span(self, method: str, context: Context) -> AbstractContextManager[object]:
        if self._tracer is None:
            return nullcontext()
        parent = context_from_metadata(context.invocation_metadata())
        return self._tracer.start_as_current_span(
            method.removeprefix("/"), context=parent, kind=trace.SpanKind.SERVER
        )

    def _judge(
        self, error: Exception, method: str
    ) -> tuple[grpc.StatusCode, errors_pb2.ErrorDetail]:
        if isinstance(error, ServiceError):
            return status_code(error), error_detail(error)
        self._log.exception("rpc_failed", method=method)
        return grpc.StatusCode.INTERNAL, internal_error_detail()


async def _abort(context: Context, code: grpc.StatusCode, detail: errors_pb2.ErrorDetail) -> None:
    trailer = ((ERROR_METADATA_KEY, detail.SerializeToString()),)
    await context.abort(code, detail.message, trailing_metadata=trailer)
